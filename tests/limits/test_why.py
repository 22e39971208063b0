"""Why a job waits, as `jobs.why` says it: each reason as a user meets it."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import ConcurrencyLimit, Jobs, RateLimit, UnknownJob
from sqla_jobs.models.types import PARKED
from sqla_jobs.monitoring.examine import examine
from sqla_jobs.monitoring.limits import read_limits
from tests import limited_shop as shop
from tests.counting import states
from tests.helpers import wait_until
from tests.limited_shop import jobs


@pytest.fixture
def declared(database: Engine) -> Engine:
    """A database in which a worker has stored what code declares."""
    with jobs.worker():
        pass
    return database


@pytest.fixture
def served(declared: Engine, session: Session) -> Session:
    """A session on a database with a process that lives, and claims nothing."""
    session.add(jobs.Process(kind="worker", queues={"default": 4}, host="here", pid=4711, lease=3600))
    session.commit()
    return session


def run(session: Session, *ids: int) -> None:
    """As if the worker had claimed them."""
    session.execute(
        text(
            "UPDATE sqla_jobs SET state = 'running', attempt = attempt + 1, started_at = clock_timestamp(),"
            " current_run_id = nextval('sqla_runs_id_seq'), process_id = (SELECT id FROM sqla_processes LIMIT 1)"
            " WHERE id = ANY (:ids)"
        ),
        {"ids": list(ids)},
    )
    session.commit()


def added(session: Session, task: Any, **arguments: Any) -> Any:
    job = task.enqueue(session, **arguments)
    session.commit()
    return job


def test_a_job_that_nothing_holds_says_how_many_wait_before_it(served: Session) -> None:
    for n in range(3):
        added(served, shop.plain, n=n)
    last = added(served, shop.plain, n=3)
    assert jobs.why(served, last) == ["It is queued, and 3 jobs are before it in queue 'default'."]
    assert jobs.why(served, 1) == ["It is queued and nothing holds it: a worker takes it next."]


def test_a_full_limit_names_the_jobs_that_fill_it(served: Session) -> None:
    made = [added(served, shop.charge, n=n).id for n in range(6)]
    run(served, *made[:3])
    assert jobs.why(served, made[5]) == ["The limit stripe is full: of at most 3 jobs at once 3 run, jobs 1, 2 and 3."]
    jobs.set_limit(served, "stripe", running=4)
    served.commit()
    run(served, made[3])
    said = "The limit stripe is full: of at most 4 jobs at once 4 run, jobs 1, 2, 3 and 1 more."
    assert jobs.why(served, made[5]) == [said]
    jobs.set_limit(served, "stripe", running=0)
    served.commit()
    assert "The limit stripe lets nothing start: an operator set it to 0 at 20" in jobs.why(served, made[5])[0]


def test_each_key_is_full_by_itself(served: Session) -> None:
    first, second, other = (added(served, shop.keyed, account=account) for account in (17, 17, 18))
    run(served, first.id)
    assert jobs.why(served, second) == ["The limit keyed of key 17 is full: of at most 1 job at once 1 runs, job 1."]
    assert "nothing holds it" in jobs.why(served, other)[0]


@pytest.mark.slow
def test_a_rate_says_when_the_next_may_start(declared: Engine, session: Session) -> None:
    with jobs.worker(["default"]):
        jobs.set_limit(session, shop.rated, rate=2, per=60)
        made = [shop.rated.enqueue(session, n=n) for n in range(3)]
        session.commit()
        wait_until(lambda: states(declared)["succeeded"] == 2)
        last = next(
            job for job in made if session.scalar(select(jobs.Job.state).where(jobs.Job.id == job.id)) == "queued"
        )
        (said,) = jobs.why(session, last)
    form = (
        r"The rate rated is used up: 2 of at most 2 starts in 1 min are taken; "
        r"the next one is possible at 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC, in (5\d s|1 min)\."
    )
    assert re.fullmatch(form, said), said


def test_an_ordered_job_says_behind_which_one_it_waits(served: Session) -> None:
    first, second, third = (added(served, shop.ordered, account=1, n=n) for n in range(3))
    assert "nothing holds it" in jobs.why(served, first)[0]
    assert jobs.why(served, third) == ["The jobs of ordered of key 1 start in their order, and job 1 is before it."]
    run(served, first.id)
    assert jobs.why(served, second) == ["The limit ordered of key 1 is full: of at most 1 job at once 1 runs, job 1."]
    retry = "UPDATE sqla_jobs SET state = 'scheduled', run_at = clock_timestamp() + interval '5 min' WHERE id = 1"
    served.execute(text(retry))
    served.commit()
    (said,) = jobs.why(served, second)
    assert said.startswith("The jobs of ordered of key 1 start in their order, and job 1 waits until 20")
    assert said.endswith("for its next attempt.")


def test_what_failed_and_holds_a_key_is_named_with_the_remedy(served: Session) -> None:
    failed, waiting = (added(served, shop.held, account=1) for _ in range(2))
    run(served, failed.id)
    served.execute(text("UPDATE sqla_jobs SET state = 'failed', finished_at = clock_timestamp() WHERE id = 1"))
    served.commit()
    (said,) = jobs.why(served, waiting)
    assert said == (
        "Job 1 failed and keeps the key held of key 1 until it is retried or cancelled: "
        "`sqla-jobs retry 1` runs it again, `sqla-jobs cancel 1` lets the next one start."
    )
    (said,) = jobs.why(served, failed)
    assert re.fullmatch(r"It failed at 20.* UTC after 1 attempt\. It keeps the key held of key 1: .*", said)


def test_a_queue_is_limited_or_paused_or_served_by_nobody(served: Session) -> None:
    first, second = (added(served, shop.plain, n=n) for n in range(2))
    jobs.set_limit(served, queue="default", running=1)
    run(served, first.id)
    assert jobs.why(served, second) == ["The limit of queue default is full: of at most 1 job at once 1 runs, job 1."]
    jobs.pause(served, "default")
    jobs.pause(served, task=shop.plain)
    served.commit()
    said = jobs.why(served, second)
    assert re.match(r"The task 'plain' has been paused since 20.* UTC; `sqla-jobs resume --task plain` ", said[0])
    assert re.match(r"The queue 'default' has been paused since 20.* UTC; `sqla-jobs resume default` ", said[1])
    assert len(said) == 3
    lonely = shop.plain.options(queue="lonely").enqueue(served, n=1)
    served.commit()
    assert "No live worker serves queue 'lonely': start one with `--queues lonely`." in jobs.why(served, lonely)


def test_the_reason_and_the_end_of_a_pause_are_told(served: Session) -> None:
    job = shop.plain.enqueue(served, n=1)
    jobs.pause(served, task="plain", reason="the provider is down", until=timedelta(hours=1))
    (said, *_) = jobs.why(served, job)
    assert re.match(r"The task 'plain' has been paused since 20.* UTC until 20.* UTC \(the provider is down\);", said)


def test_who_paused_it_is_told_where_the_audit_knows(served: Session) -> None:
    job = added(served, shop.plain, n=1)
    jobs.pause(served, "default")
    served.add(jobs.Audit(actor="ada", action="pause", subject="queue default"))
    served.commit()
    assert " by ada; `sqla-jobs resume default`" in jobs.why(served, job)[0]


def test_a_job_of_a_task_that_nobody_declares_here_says_so(served: Session) -> None:
    served.execute(text("INSERT INTO sqla_jobs (task, args, state) VALUES ('plian', '{}', 'queued')"))
    assert "does not declare the task 'plian'; did you mean 'plain'?" in jobs.why(served, 1)[0]


def test_who_holds_the_row_is_told(served: Session, database: Engine) -> None:
    job = added(served, shop.plain, n=1)
    with database.begin() as connection:
        connection.execute(text("SELECT FROM sqla_jobs WHERE id = 1 FOR UPDATE"))
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        (said,) = jobs.why(served, job)
        assert said.startswith(f"Its row is held by pid {pid} of ")
        assert said.endswith(": no worker can take it before that transaction ends.")


def test_what_the_server_refuses_is_told(served: Session) -> None:
    job = added(served, shop.plain, n=1)
    served.execute(text("UPDATE sqla_processes SET set_aside = jsonb_build_object('job 1', 'CheckViolation: no')"))
    served.commit()
    (said,) = jobs.why(served, job)
    assert said.startswith("Workers pass it over, and try it again every minute: CheckViolation: no. Fix the cause: ")


def test_the_jobs_of_a_vanished_process_are_told_of(served: Session) -> None:
    job = added(served, shop.plain, n=1)
    run(served, job.id)
    served.execute(text("DELETE FROM sqla_processes"))
    assert "in a process that has vanished; a worker rescues it" in jobs.why(served, job)[0]


def test_what_is_not_committed_is_told(served: Session) -> None:
    job = shop.plain.enqueue(served, n=1)
    (said,) = jobs.why(served, job)
    assert said == "This transaction has added or changed it: no worker can take it before the commit."


def test_a_scheduled_job_says_until_when_it_waits_and_why(served: Session, database: Engine) -> None:
    later = shop.plain.options(delay=timedelta(hours=2)).enqueue(served, n=1)
    parked = shop.plain.options(delay=60).enqueue(served, n=1)
    served.commit()
    assert re.fullmatch(r"It is not due before 20.* UTC, in (2 h|1 h 59 min)\.", jobs.why(served, later)[0])
    parked.run_at = PARKED
    served.commit()
    assert jobs.why(served, parked) == ["It is parked: it waits until it is rescheduled or retried."]


def test_a_job_that_waits_for_its_retry_says_which_attempt_failed(declared: Engine, session: Session) -> None:
    job = added(session, shop.ordered, account=1, n=1, failures=1)
    with jobs.worker():
        wait_until(lambda: states(declared) == {"scheduled": 1})
        (said,) = jobs.why(session, job)
    form = r"Attempt 1 of 25 failed with RuntimeError; the next one is due at 20.* UTC, in .* s\."
    assert re.fullmatch(form, said), said


@pytest.mark.slow
def test_running_and_ended_jobs_say_so(declared: Engine, session: Session) -> None:
    running = added(session, shop.plain, n=1, seconds=1.0)
    with jobs.worker():
        wait_until(lambda: states(declared)["running"] == 1)
        assert re.match(r"It runs: attempt 1 of 25, for .* in process \d+ of .*\.$", jobs.why(session, running)[0])
        wait_until(lambda: states(declared)["succeeded"] == 1)
    assert re.fullmatch(r"It succeeded at 20.* UTC\.", jobs.why(session, running)[0])
    cancelled = added(session, shop.plain, n=1)
    jobs.cancel(session, cancelled)
    assert re.fullmatch(r"It was cancelled at 20.* UTC\.", jobs.why(session, cancelled)[0])


def test_a_limit_that_is_newer_than_the_job_counts(served: Session) -> None:
    job = added(served, shop.plain, n=1)
    jobs.set_limit(served, shop.plain, running=0)
    served.commit()
    assert "The limit plain lets nothing start" in jobs.why(served, job)[0]


def test_a_job_that_is_gone_is_unknown(served: Session) -> None:
    with pytest.raises(UnknownJob, match="there is no job 4711; it may have been pruned"):
        jobs.why(served, 4711)


class Base(DeclarativeBase):
    pass


odd = Jobs(Base, schema="Odd schema", prefix="q_")


@odd.task(limits=[ConcurrencyLimit(1, key="n", ordered="hold"), RateLimit(1, per=60)])
def odd_one(n: int) -> None: ...


def test_names_that_need_quotes_are_quoted(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text('CREATE SCHEMA "Odd schema"'))
        Base.metadata.create_all(connection)
    odd.bind(engine)
    with odd.worker(), Session(engine) as session:
        made = [odd_one.enqueue(session, n=n) for n in (1, 2)]
        session.commit()
        wait_until(lambda: session.scalar(select(odd.Job.id).where(odd.Job.state == "succeeded")))
        session.rollback()
        assert any("The rate odd_one is used up" in reason for job in made for reason in odd.why(session, job))
        assert {one.gate: one.waiting for one in read_limits(session, odd)} == {"!odd_one=": 1, "%odd_one": 1}
        assert all(one.verdict == "ok" for one in examine(session, odd) if one.about != "workers")
