"""Timeouts and cancels reach a running task, and nothing around it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from sqla_jobs.execution import interrupt
from sqla_jobs.execution.interrupt import Body, TimedOut
from tests import shop
from tests.helpers import wait_until
from tests.shop import Effect, jobs


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    """One whose rows can be read after a commit without asking the database."""
    with Session(database, expire_on_commit=False) as session:
        yield session


def job(session: Session, job_id: int) -> shop.MyJob:
    session.rollback()
    return session.get_one(jobs.Job, job_id, populate_existing=True)


def effects(session: Session) -> int:
    session.rollback()
    return session.scalar(select(func.count()).select_from(Effect)) or 0


@pytest.mark.slow
def test_a_task_that_takes_too_long_is_interrupted_rolled_back_and_retried_by_policy(session: Session) -> None:
    one = shop.overrun.enqueue(session, n=1)
    session.commit()
    assert jobs.worker().drain() == 2
    runs = job(session, one.id).runs
    assert [str(run.outcome) for run in runs] == ["retried", "failed"]
    assert runs[0].error_type == "TimeoutError"
    assert runs[0].error == "ran longer than its timeout of 0.2 s"
    assert "_busy" in (runs[0].traceback or "")
    assert effects(session) == 0


@pytest.mark.slow
def test_a_running_job_that_is_cancelled_is_interrupted_and_rolled_back(session: Session) -> None:
    one = shop.endless.enqueue(session, n=1)
    session.commit()
    with jobs.worker(clock=False):
        wait_until(lambda: job(session, one.id).progress == 0.1)
        assert jobs.cancel(session, one.id)
        session.commit()
        wait_until(lambda: job(session, one.id).state == "cancelled")
    assert [(str(run.outcome), run.error) for run in job(session, one.id).runs] == [
        ("cancelled", "cancelled while it ran")
    ]
    assert effects(session) == 0


@pytest.mark.slow
def test_a_task_may_see_the_request_and_end_as_it_likes(session: Session) -> None:
    one = shop.cooperative.enqueue(session)
    session.commit()
    with jobs.worker(clock=False):
        wait_until(lambda: job(session, one.id).state == "running")
        jobs.cancel(session, one.id)
        session.commit()
        wait_until(lambda: job(session, one.id).state == "succeeded")
    assert job(session, one.id).runs[0].result == "saw it"


def test_a_claimed_job_that_is_cancelled_before_it_starts_does_not_start(session: Session) -> None:
    """Enough short jobs make the worker claim ahead; the last of them waits behind two long ones."""
    shop.mark.enqueue_many(session, ({"n": n} for n in range(300)))
    shop.wait.enqueue_many(session, ({"n": n} for n in range(2)))
    last = shop.write.enqueue(session, n=1)
    session.commit()
    with jobs.worker(concurrency=2, clock=False):
        wait_until(lambda: job(session, last.id).state == "running" or job(session, last.id).attempt == 0)
        jobs.cancel(session, last.id)
        session.commit()
        wait_until(lambda: job(session, last.id).state == "cancelled")
        shop.gate.set()
    assert job(session, last.id).runs == []


@pytest.mark.slow
def test_an_interrupt_arrives_inside_the_body_or_not_at_all() -> None:
    bodies, seen, done = list[Body](), list[str](), threading.Event()

    def work() -> str:
        time.sleep(0.0002)  # lets the other thread in
        return "ended"

    def run() -> None:
        body = interrupt.body()
        bodies.append(body)
        for _ in range(1000):
            try:
                seen.append(body.run(seen, work))
            except TimedOut:
                seen.append("interrupted")
            seen[-1] += ""  # outside of the body: nothing may be raised here
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: bool(bodies))
    sent = 0
    while not done.is_set() and thread.is_alive():
        sent += bodies[0].interrupt(seen, TimedOut)
    thread.join()
    assert len(seen) == 1000
    assert set(seen) <= {"ended", "interrupted"}
    assert 0 < seen.count("interrupted") <= sent
