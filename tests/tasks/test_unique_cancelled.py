"""A job that was cancelled while it runs has no unique key any more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import JobMixin, Jobs, Unique
from tests.helpers import states, wait_until, waiting_for_locks

LEASE = "current_run_id = 1, process_id = '00000000-0000-0000-0000-000000000001'"


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)
started = threading.Event()


@jobs.task(unique=Unique("sql"))
def query(sql: str, forever: bool = False) -> None:
    started.set()
    while forever:
        threading.Event().wait(0.01)


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


def running(session: Session, task: Any = query) -> JobMixin:
    job: JobMixin = task.enqueue(session, "SELECT 1")
    session.flush()
    session.execute(text(f"UPDATE sqla_jobs SET state = 'running', {LEASE}"))
    session.commit()
    return job


def test_a_request_after_a_cancel_is_a_job_of_its_own_that_runs(database: Engine, session: Session) -> None:
    """And not the one that is about to end as cancelled."""
    with jobs.worker(bind=database, clock=False):
        first = query.enqueue(session, "SELECT 1", forever=True)
        session.commit()
        wait_until(started.is_set)
        jobs.cancel(session, first)
        second = query.enqueue(session, "SELECT 1")
        assert (second.is_new, second is first, first.state) == (True, False, "running")
        session.commit()
        wait_until(lambda: states(session) == {first.id: "cancelled", second.id: "succeeded"})


@pytest.mark.parametrize("end", [Session.commit, Session.rollback])
def test_an_enqueue_beside_a_cancel_waits_for_what_becomes_of_it(
    database: Engine, session: Session, end: Callable[[Session], None]
) -> None:
    first = running(session)
    jobs.cancel(session, first)

    def request() -> tuple[bool, int]:
        with Session(database) as other:
            job = query.enqueue(other, "SELECT 1")
            other.commit()
            return job.is_new, job.id

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(request)
        wait_until(lambda: waiting_for_locks(database))
        end(session)
        is_new, job_id = asked.result(20)
    assert (is_new, job_id != first.id) == ((True, True) if end is Session.commit else (False, False))


def test_the_job_of_a_period_stays_the_one_of_that_period(session: Session) -> None:
    once = query.options(unique=Unique("sql", per=timedelta(days=36500)))
    first = running(session, once)
    jobs.cancel(session, first)
    assert (once.enqueue(session, "SELECT 1") is first, first.is_new) == (True, False)


def test_a_waiting_job_that_is_cancelled_keeps_its_key_for_a_retry(session: Session) -> None:
    first = query.enqueue(session, "SELECT 1")
    jobs.cancel(session, first)
    second = query.enqueue(session, "SELECT 1")
    assert (second is first, first.unique_key) == (False, second.unique_key)
