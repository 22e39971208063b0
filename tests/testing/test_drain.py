"""`sqla_jobs.testing.drain`, as the tests of an application use it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqla_jobs import JobsError
from sqla_jobs.testing import drain
from tests import shop
from tests.shop import Effect, jobs


@pytest.fixture
def session(sqla_jobs_session: Session, sqla_jobs_engine: Engine) -> Iterator[Session]:
    yield sqla_jobs_session
    sqla_jobs_session.close()
    with Session(sqla_jobs_engine) as after:  # nothing is committed before the test's transaction is rolled back
        assert after.scalar(select(func.count()).select_from(jobs.Job)) == 0
        assert after.scalar(select(func.count()).select_from(jobs.Run)) == 0


def test_it_runs_due_jobs_in_the_callers_thread_and_session(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    one = shop.write.enqueue(session, n=3)
    session.flush()

    def sleep(seconds: float) -> None:
        seen.append(threading.current_thread())

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr(session, "add", seen.append)
    assert drain(session, jobs).runs == 1
    assert one.state == "succeeded"
    assert one.runs[0].result == 3
    assert [type(thing) for thing in seen] == [Effect, type(threading.current_thread())]


def test_a_failure_rolls_its_own_writes_back_and_keeps_the_tests(session: Session) -> None:
    session.add(Effect(n=99, kind="mine"))
    one = shop.write_and_fail.enqueue(session, n=1)
    drained = drain(session, jobs, errors="record")
    assert drained.runs == 2
    assert [str(error) for error in drained.errors] == ["after the write"] * 2
    assert one.state == "failed"
    assert [str(run.outcome) for run in one.runs] == ["retried", "failed"]
    assert list(session.scalars(select(Effect.n))) == [99]


def test_delayed_jobs_and_retries_run_ahead_of_time_on_request(session: Session) -> None:
    later = shop.write.options(delay=timedelta(minutes=30)).enqueue(session, n=1)
    broken = shop.write.enqueue(session, n=2)
    session.flush()
    broken.args = {"n": "not a number"}
    assert drain(session, jobs, errors="record").runs == 1
    assert (later.state, broken.state) == ("scheduled", "scheduled")
    assert drain(session, jobs, ahead=timedelta(minutes=1), errors="record").runs > 2
    assert (later.state, broken.state) == ("scheduled", "scheduled")
    drain(session, jobs, ahead=timedelta(days=1), errors="record")
    assert broken.attempt == 25
    assert (later.state, broken.state) == ("succeeded", "failed")


def test_a_task_that_commits_its_session_does_not_end_the_test(session: Session) -> None:
    @jobs.task(name="commits")
    def commits(session: Session, n: int) -> None:
        session.add(Effect(n=n, kind="committed"))
        session.commit()

    one = commits.enqueue(session, n=1)
    session.commit()
    drain(session, jobs)
    assert one.state == "succeeded"
    assert list(session.scalars(select(Effect.n))) == [1]


def test_a_job_that_enqueues_itself_for_ever_is_an_error(session: Session) -> None:
    shop.chain.enqueue(session, n=50)
    with pytest.raises(JobsError, match="after 10 runs"):
        drain(session, jobs, max_runs=10)


def test_a_final_exception_reaches_the_test_once_it_is_recorded(session: Session) -> None:
    broken = shop.write_and_fail.options(max_attempts=1).enqueue(session, n=1)
    after = shop.write.enqueue(session, n=2)
    with pytest.raises(RuntimeError, match="after the write") as raised:
        drain(session, jobs)
    (note,) = raised.value.__notes__
    assert note.startswith(f"raised by job {broken.id}, ")
    assert raised.traceback[-1].name == "write_and_fail"
    assert (broken.state, broken.runs[0].error) == ("failed", "after the write")
    assert (after.state, drain(session, jobs).runs) == ("queued", 1)
    assert list(session.scalars(select(Effect.n))) == [2]


def test_a_task_without_a_policy_raises_at_its_first_error(session: Session) -> None:
    @jobs.task(name="expects_no_error")
    def expects_no_error() -> None:
        raise ValueError("a bug")

    job = expects_no_error.enqueue(session)
    with pytest.raises(ValueError, match="a bug") as raised:
        drain(session, jobs)
    assert "retry=" in raised.value.__notes__[0]
    assert (job.state, job.runs[0].outcome) == ("scheduled", "retried")
    assert [*map(str, drain(session, jobs, ahead=2.6, errors="record").errors)] == ["a bug"]


def test_a_base_exception_reaches_the_test_even_if_the_policy_retries_it(session: Session) -> None:
    @jobs.task(name="interrupted", sensitive=["token"])
    def interrupted(token: str) -> None:
        raise KeyboardInterrupt

    job = interrupted.enqueue(session, token="hunter2")
    with pytest.raises(KeyboardInterrupt) as raised:
        drain(session, jobs)
    assert job.state == "scheduled"
    assert "hunter2" not in raised.value.__notes__[0]


def test_due_jobs_that_do_not_run_are_named(session: Session) -> None:
    paused = shop.write.options(queue="mail").enqueue(session, n=1)
    jobs.pause(session, "mail")
    session.add(unknown := jobs.Job(task="of.another.service", args={}))
    shop.write.enqueue(session, n=2)
    drained = drain(session, jobs)
    assert (drained.runs, drained.waiting) == (1, [paused.id, unknown.id])


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_it_runs_in_an_asynchronous_session_too(sqla_jobs_engine: Engine, driver: str) -> None:
    async def run() -> tuple[int, list[str], list[int]]:
        engine = create_async_engine(sqla_jobs_engine.url.set(drivername=f"postgresql+{driver}"))
        async with engine.connect() as connection, connection.begin() as transaction:
            async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
                await session.run_sync(shop.chain.enqueue, n=1)
                await session.run_sync(shop.flaky.options(delay=60).enqueue, good_from=2)
                await session.run_sync(shop.reports.enqueue, good=True)
                drained = await session.run_sync(lambda own: drain(own, jobs, ahead=3600))
                states = (await session.scalars(select(jobs.Job.state).distinct())).all()
                effects = (await session.scalars(select(Effect.n).order_by(Effect.n))).all()
            await transaction.rollback()
        await engine.dispose()
        return drained.runs, [*map(str, states)], [*effects]

    assert asyncio.run(run()) == (5, ["succeeded"], [0, 1])
    with Session(sqla_jobs_engine) as after:
        assert after.scalar(select(func.count()).select_from(jobs.Job)) == 0


def test_the_event_loop_of_the_thread_stays_set(session: Session) -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        shop.write.enqueue(session, n=1)
        assert drain(session, jobs).runs == 1
        assert asyncio.get_event_loop() is loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def test_priorities_and_queues_are_respected(session: Session) -> None:
    for n, priority in enumerate([0, -5, 5]):
        shop.write.options(priority=priority, queue="mail").enqueue(session, n=n)
    shop.write.enqueue(session, n=9)
    assert drain(session, jobs, queues=["mail"]).runs == 3
    assert list(session.scalars(select(Effect.n).order_by(Effect.id))) == [1, 0, 2]
