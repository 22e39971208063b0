"""Jobs after other jobs, as their users see them: `after=`, `if_failed=`, and who hears of an end."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, select, text
from sqlalchemy.orm import Session

from sqla_jobs import ArgumentsError, JobMixin, JobState, Unique
from sqla_jobs.actions.audit import Changing
from sqla_jobs.actions.jobs import Delete
from sqla_jobs.queries import Queries
from sqla_jobs.worker import Worker
from tests import shop
from tests.helpers import states, wait_until
from tests.shop import jobs


def state_of(session: Session, job: JobMixin) -> str:
    session.rollback()
    return str(session.scalar(select(jobs.Job.state).where(jobs.Job.id == job.id)))


def reaches(session: Session, job: JobMixin, state: str) -> None:
    wait_until(lambda: state_of(session, job) == state, message=f"job {job.id} is {state_of(session, job)}")


def test_a_job_after_jobs_that_have_ended_is_queued_at_once(session: Session, database: Engine) -> None:
    first = shop.mark.enqueue(session, n=1)
    session.commit()
    jobs.worker(bind=database).drain()
    second = shop.mark.options(after=first).enqueue(session, n=2)
    later = shop.mark.options(after=first, delay=timedelta(hours=1)).enqueue(session, n=3)
    assert (second.state, later.state) == (JobState.queued, JobState.scheduled)
    session.commit()


@pytest.mark.parametrize("policy", ["cancel", "run", "hold"])
def test_what_becomes_of_a_job_after_one_that_fails_and_is_retried(
    policy: Any, session: Session, database: Engine
) -> None:
    bad = shop.flaky.options(max_attempts=1).enqueue(session, good_from=2)
    after = shop.mark.options(after=bad, if_failed=policy).enqueue(session, n=2)
    last = shop.mark.options(after=after).enqueue(session, n=3)
    session.commit()
    jobs.worker(bind=database).drain()
    session.refresh(after)
    expected = {"cancel": ["cancelled"] * 2, "run": ["succeeded"] * 2, "hold": ["blocked"] * 2}
    assert [state_of(session, after), state_of(session, last)] == expected[policy]
    if policy != "run":
        assert after.waits_for == bad.id
        jobs.retry(session, bad)
        session.commit()
        assert states(session) == {bad.id: "queued", after.id: "blocked", last.id: "blocked"}
        assert jobs.worker(bind=database).drain() == 3
        assert set(states(session).values()) == {"succeeded"}


def test_a_deleted_prerequisite_counts_as_cancelled(session: Session, worker: Worker) -> None:
    first = shop.mark.options(delay=3600).enqueue(session, n=1)
    second = shop.mark.options(delay=3600).enqueue(session, n=1)
    cancelled = shop.mark.options(after=[second, first]).enqueue(session, n=2)
    runs = shop.mark.options(after=first, if_failed="run").enqueue(session, n=3)
    held = shop.mark.options(after=first, if_failed="hold").enqueue(session, n=4)
    session.commit()
    assert Delete().one(Changing(session, jobs._models, jobs.tasks), first)
    session.commit()
    reaches(session, runs, "succeeded")
    jobs.cancel(session, second)
    session.commit()
    reaches(session, cancelled, "cancelled")
    assert state_of(session, held) == "blocked"


def test_what_cannot_be_waited_for_is_refused_and_changes_nothing(session: Session, database: Engine) -> None:
    with Session(database) as other:
        unseen = shop.mark.enqueue(other, n=1)
        other.flush()
        wrong: Any
        for wrong in (7, jobs.Job(task="mark"), unseen):
            with pytest.raises(ArgumentsError):
                shop.mark.options(after=wrong).enqueue(session, n=2)
    first = shop.mark.enqueue(session, n=1)
    session.flush()
    options: Any
    for options in (
        {"after": first, "if_failed": "stop"},
        {"if_failed": "run"},
        {"after": first, "unique": Unique(on_conflict="replace", max_delay=None)},
    ):
        with pytest.raises(ArgumentsError):
            shop.mark.options(**options).enqueue(session, n=2)
    session.rollback()
    assert states(session) == {}


def test_many_jobs_after_one_and_one_of_a_unique_key(session: Session, worker: Worker) -> None:
    first = shop.wait.enqueue(session, n=1)
    ids = shop.mark.options(after=first).enqueue_many(session, ({"n": n} for n in range(100)), returning=True)
    once = shop.mark.options(after=first, unique_key="once").enqueue(session, n=101)
    again = shop.mark.options(after=first, unique_key="once").enqueue(session, n=102)
    assert again is once
    session.commit()
    assert len(ids) == 100
    reaches(session, first, "running")
    assert [*states(session).values()].count("blocked") == 101
    shop.gate.set()
    wait_until(lambda: {*states(session).values()} == {"succeeded"})


def test_a_replacement_leaves_a_blocked_job_blocked(session: Session, database: Engine) -> None:
    first = shop.mark.enqueue(session, n=1)
    blocked = shop.mark.options(after=first, unique_key="k").enqueue(session, n=2)
    replace = Unique(on_conflict="replace", max_delay=None)
    assert shop.mark.options(unique_key="k", unique=replace).enqueue(session, n=3) is blocked
    assert (blocked.state, blocked.args) == (JobState.blocked, {"n": 3})
    session.commit()
    assert jobs.worker(bind=database).drain() == 2


def test_an_end_between_the_enqueue_and_its_commit_is_not_lost(
    session: Session, database: Engine, worker: Worker
) -> None:
    """The worker that ended the job could not see the one that waits for it."""
    first = shop.wait.enqueue(session, n=1)
    session.commit()
    reaches(session, first, "running")
    second = shop.mark.options(after=first).enqueue(session, n=2)
    shop.gate.set()
    with Session(database) as beside:
        wait_until(lambda: states(beside)[first.id] == "succeeded")
    session.commit()
    reaches(session, second, "succeeded")


def test_a_rescued_job_that_fails_for_good_is_heard_of(session: Session, database: Engine, worker: Worker) -> None:
    """The process that takes the job back is not the one that ended it."""
    first = shop.wait.options(max_attempts=1, delay=3600).enqueue(session, n=1)
    second = shop.mark.options(after=first, if_failed="run").enqueue(session, n=2)
    session.commit()
    dead = "00000000-0000-0000-0000-000000000001"
    claimed = "state = 'running', attempt = 1, current_run_id = 900, process_id = :dead, started_at = now()"
    session.execute(text(f"UPDATE sqla_jobs SET {claimed} WHERE id = :id"), {"dead": dead, "id": first.id})
    session.commit()
    with database.begin() as connection:
        assert [one.job_id for one in Queries(jobs._models).rescue(connection)] == [first.id]
    assert state_of(session, first) == "failed"
    reaches(session, second, "succeeded")


@pytest.mark.parametrize("moment", ["before_flush", "after_insert"])
def test_a_listener_of_a_flush_is_told_where_to_enqueue_after_others(moment: str, session: Session) -> None:
    first = shop.mark.enqueue(session, n=1)
    session.commit()

    def follow(*_: object) -> None:
        shop.mark.options(after=first).enqueue(session, n=2)

    target: Any = shop.Effect if moment == "after_insert" else session
    event.listen(target, moment, follow)
    try:
        session.add(shop.Effect(n=1, kind="plain"))
        with pytest.raises(ArgumentsError, match="before_commit"):
            session.flush()
    finally:
        event.remove(target, moment, follow)
    session.rollback()
    event.listen(session, "before_commit", follow, once=True)
    session.add(shop.Effect(n=1, kind="plain"))
    session.commit()
    assert [*states(session).values()] == ["queued", "blocked"]
