"""A transaction of the application that stays open, and holds the rows of running jobs: only these jobs wait."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, delete, text
from sqlalchemy.orm import Session

from tests import step_shop
from tests.conftest import StartWorker
from tests.coroutines.rows import asynchronous
from tests.helpers import as_id, wait_until, waiting_for_locks
from tests.step_shop import Effect, effects, jobs
from tests.steps.test_signals import state
from tests.steps.test_sleeps import outcomes
from tests.steps.test_steps import error_of

pytestmark = pytest.mark.slow


def say(database: Engine, kind: str) -> None:
    """Let the tasks go on that wait for this."""
    with Session(database) as session:
        session.add(Effect(kind=kind))
        session.commit()


@contextmanager
def signalled(database: Engine, *ids: int) -> Generator[Session]:
    """Signal these jobs, and hold their rows until the end of the block."""
    with Session(database) as request:
        for job_id in ids:
            jobs.signal(request, job_id, "hello")
        yield request
        request.commit()


def count(session: Session, what: str) -> int:
    session.rollback()
    return session.scalar(text(f"SELECT count(*) FROM {what}")) or 0


RUNNING, SUCCEEDED = "sqla_jobs WHERE state = 'running'", "sqla_jobs WHERE state = 'succeeded'"
TOLD = "effects WHERE kind LIKE 'told%'"
HELD: list[Any] = [
    step_shop.held_at_its_end,
    step_shop.held_at_a_step,
    step_shop.held_at_a_step_in_session,
    step_shop.held_at_an_awaited_step,
    step_shop.held_at_an_awaited_step_in_session,
]


@pytest.mark.timeout(120)
def test_a_held_row_costs_neither_the_process_nor_an_attempt(
    database: Engine, session: Session, database_url: str, start_worker: StartWorker
) -> None:
    """The runs wait for longer than their timeout and what a parent adds to it; then each gives up alone."""
    held = [task.enqueue(session, url=database_url) for task in HELD]
    others = [step_shop.bystander.enqueue(session) for _ in range(5)]
    session.commit()
    options = ("--lease", "6", "--kill-after", "0.5", "--concurrency", "10")
    start_worker(database_url, *options, application="tests.step_shop:jobs")
    wait_until(lambda: count(session, RUNNING) == 10)
    with signalled(database, *(job.id for job in held)):
        say(database, "go")
        wait_until(lambda: count(session, TOLD) == len(HELD))
        wait_until(lambda: waiting_for_locks(database) == 3)
        wait_until(lambda: waiting_for_locks(database) == 0)
    say(database, "end")
    wait_until(lambda: count(session, SUCCEEDED) == 10, timeout=40)
    assert [outcomes(session, job) for job in others] == [["succeeded"]] * 5
    for job in held:
        assert outcomes(session, job) in (["snoozed", "succeeded"], ["succeeded"])
    assert count(session, "sqla_runs WHERE outcome = 'snoozed'") >= 3
    assert effects(session)["written"] == 3


@pytest.mark.timeout(120)
def test_an_attempt_whose_row_is_held_again_and_again_fails_by_its_policy(
    database: Engine, database_url: str, session: Session
) -> None:
    job = step_shop.held_at_its_end.enqueue(session, url=database_url)
    session.commit()
    with jobs.worker(heartbeat=0.2, lease=2.0, clock=False) as worker:
        for runs in range(1, 5):
            wait_until(lambda: state(session, job) == "running")
            with signalled(database, job.id):
                say(database, "go")
                wait_until(lambda: waiting_for_locks(database) == 1)
                wait_until(lambda: waiting_for_locks(database) == 0)
                session.execute(delete(Effect))
                session.commit()
            wait_until(lambda runs=runs: worker.runs == runs)  # type: ignore[misc]
    assert outcomes(session, job) == ["snoozed", "snoozed", "snoozed", "failed"]
    assert "another transaction held the job's row" in error_of(session, job)


@pytest.mark.parametrize(
    ("task", "driver"),
    [
        (step_shop.held_at_its_end, "psycopg"),
        (step_shop.held_at_a_step_in_session, "psycopg"),
        (step_shop.held_at_an_awaited_step_in_session, "asyncpg"),
    ],
    ids=as_id,
)
def test_a_run_whose_row_is_held_for_too_long_gives_up_and_is_repeated(
    database: Engine, database_url: str, session: Session, caplog: pytest.LogCaptureFixture, task: Any, driver: str
) -> None:
    if driver == "asyncpg":
        jobs.bind(database, async_bind=asynchronous(database, driver))
    job = task.enqueue(session, url=database_url)
    session.commit()
    with jobs.worker(heartbeat=0.2, lease=1.5, clock=False):
        wait_until(lambda: state(session, job) == "running")
        with signalled(database, job.id):
            say(database, "go")
            wait_until(lambda: "another transaction held the job's row" in caplog.text)
            assert state(session, job) == "running"
        wait_until(lambda: state(session, job) == "succeeded")
    assert (outcomes(session, job), job.attempt) == (["snoozed", "succeeded"], 1)
    assert count(session, TOLD) == 2


def test_steps_that_wait_for_rows_keep_no_thread_and_no_connection_from_others(
    database: Engine, database_url: str, session: Session
) -> None:
    """More runs wait than there are connections for steps, and threads in the event loop's own pool."""
    waiting: list[Any] = [step_shop.held_at_a_step, step_shop.held_at_an_awaited_step] * 8
    held = [task.enqueue(session, url=database_url) for task in waiting]
    session.commit()
    with jobs.worker({"default": 40}, clock=False):
        wait_until(lambda: count(session, RUNNING) == len(held))
        with signalled(database, *(job.id for job in held)):
            say(database, "go")
            wait_until(lambda: count(session, TOLD) == len(held))
            tasks: list[Any] = [step_shop.one_step, step_shop.in_a_thread_of_asyncio, step_shop.gathers] * 5
            others = [task.enqueue(session) for task in tasks]
            session.commit()
            wait_until(lambda: all(state(session, job) == "succeeded" for job in others))
            assert count(session, RUNNING) == len(held)
        wait_until(lambda: all(state(session, job) == "succeeded" for job in held))
    assert {tuple(outcomes(session, job)) for job in held} == {("succeeded",)}


def test_threads_of_asyncio_that_are_all_busy_delay_no_step(database: Engine, session: Session) -> None:
    job = step_shop.steps_beside_busy_threads.enqueue(session)
    session.commit()
    with jobs.worker(clock=False):
        wait_until(lambda: state(session, job) == "succeeded", timeout=10)
    assert job.result == [1] * 41
