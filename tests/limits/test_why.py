"""Why a job waits, as `jobs.why` says it: each reason as a user meets it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from tests import limited_shop as shop
from tests.limited_shop import jobs


@pytest.fixture
def declared(database: Engine) -> Engine:
    """A database in which a worker has stored what code declares."""
    with jobs.worker(clock=False):
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


def test_a_full_limit_names_the_jobs_that_fill_it(served: Session) -> None:
    made = [added(served, shop.charge, n=n).id for n in range(6)]
    run(served, *made[:3])
    jobs.set_limit(served, "stripe", running=4)
    served.commit()
    run(served, made[3])
    said = "The limit stripe is full: of at most 4 jobs at once, 4 run: 1, 2, 3, …"
    assert jobs.why(served, made[5]) == [said]


def test_an_ordered_job_says_behind_which_one_it_waits(served: Session) -> None:
    first, second, third = (added(served, shop.ordered, account=1, n=n) for n in range(3))
    assert "job 1 is before it" in jobs.why(served, third)[0]
    run(served, first.id)
    assert "is full" in jobs.why(served, second)[0]
    retry = "UPDATE sqla_jobs SET state = 'scheduled', run_at = clock_timestamp() + interval '5 min' WHERE id = 1"
    served.execute(text(retry))
    served.commit()
    (said,) = jobs.why(served, second)
    assert "job 1 is before it" in said


def test_what_failed_and_holds_a_key_is_named_with_the_remedy(served: Session) -> None:
    failed, waiting = (added(served, shop.held, account=1) for _ in range(2))
    run(served, failed.id)
    served.execute(text("UPDATE sqla_jobs SET state = 'failed', finished_at = clock_timestamp() WHERE id = 1"))
    served.commit()
    (said,) = jobs.why(served, waiting)
    assert all(command in said for command in ("`sqla-jobs retry 1`", "`sqla-jobs cancel 1`"))
    assert "keeps the key held of key 1" in jobs.why(served, failed)[0]


def test_a_queue_is_limited_or_paused_or_served_by_nobody(served: Session) -> None:
    first, second = (added(served, shop.plain, n=n) for n in range(2))
    jobs.set_limit(served, queue="default", running=1)
    run(served, first.id)
    assert jobs.why(served, second) == ["The limit of queue default is full: of at most 1 job at once, 1 run: 1."]
    jobs.pause(served, "default")
    jobs.pause(served, task=shop.plain, reason="the provider is down")
    served.commit()
    said = jobs.why(served, second)
    assert "the provider is down" in said[0]
    assert "`sqla-jobs resume --task plain`" in said[0]
    assert "`sqla-jobs resume default`" in said[1]
    assert len(said) == 3
    lonely = shop.plain.options(queue="lonely").enqueue(served, n=1)
    served.commit()
    assert "Queue lonely: no live worker serves it, and 1 job is waiting; start" in jobs.why(served, lonely)[1]


def test_a_job_of_a_task_that_nobody_declares_here_says_so(served: Session) -> None:
    served.execute(text("INSERT INTO sqla_jobs (task, args, state) VALUES ('plian', '{}', 'queued')"))
    assert "Task plian: this application does not declare it" in (said := jobs.why(served, 1)[0])
    assert "did you mean 'plain'?" in said


def test_who_holds_the_row_is_told(served: Session, database: Engine) -> None:
    job = added(served, shop.plain, n=1)
    with database.begin() as connection:
        connection.execute(text("SELECT FROM sqla_jobs WHERE id = 1 FOR UPDATE"))
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        assert f"pid {pid} " in jobs.why(served, job)[0]


def test_what_the_server_refuses_is_told(served: Session) -> None:
    job = added(served, shop.plain, n=1)
    served.execute(text("UPDATE sqla_processes SET set_aside = jsonb_build_object('job 1', 'CheckViolation: no')"))
    served.commit()
    assert "CheckViolation: no" in jobs.why(served, job)[0]


def test_the_jobs_of_a_vanished_process_are_told_of(served: Session) -> None:
    job = added(served, shop.plain, n=1)
    run(served, job.id)
    served.execute(text("DELETE FROM sqla_processes"))
    assert "in a process that has vanished; a worker rescues it" in jobs.why(served, job)[0]


def test_what_is_not_committed_is_told(served: Session) -> None:
    job = shop.plain.enqueue(served, n=1)
    assert "commit" in jobs.why(served, job)[0]
