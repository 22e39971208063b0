"""`sqla_jobs.testing.drain`, as the tests of an application use it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sqla_jobs import JobsError
from sqla_jobs.testing import drain
from tests import shop
from tests.shop import Effect, jobs


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    """A session bound to a transaction that is rolled back, as the tests of applications have it."""
    with database.connect() as connection, connection.begin() as transaction:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            yield session
        transaction.rollback()
    with Session(database) as after:
        assert after.scalar(select(func.count()).select_from(jobs.Job)) == 0
        assert after.scalar(select(func.count()).select_from(jobs.Run)) == 0


def test_it_runs_what_is_due_in_the_callers_thread_and_session(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    one = shop.write.enqueue(session, n=3)
    session.flush()

    def sleep(seconds: float) -> None:
        seen.append(threading.current_thread())

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr(session, "add", seen.append)
    assert drain(jobs, session) == 1
    assert one.state == "succeeded"
    assert one.runs[0].result == 3
    assert [type(thing) for thing in seen] == [Effect, type(threading.current_thread())]


def test_effects_and_follow_up_jobs_are_there_and_nothing_is_committed(session: Session) -> None:
    one = shop.chain.enqueue(session, n=2)
    assert drain(jobs, session) == 3
    assert sorted(session.scalars(select(Effect.n))) == [0, 1, 2]
    assert one.state == "succeeded"


def test_a_failure_rolls_its_own_writes_back_and_keeps_the_tests(session: Session) -> None:
    session.add(Effect(n=99, kind="mine"))
    one = shop.write_and_fail.enqueue(session, n=1)
    assert drain(jobs, session) == 2
    assert one.state == "failed"
    assert [str(run.outcome) for run in one.runs] == ["retried", "failed"]
    assert list(session.scalars(select(Effect.n))) == [99]


def test_delayed_jobs_and_retries_run_ahead_of_time_on_request(session: Session) -> None:
    later = shop.write.options(delay=timedelta(minutes=30)).enqueue(session, n=1)
    broken = shop.write.enqueue(session, n=2)
    session.flush()
    broken.args = {"n": "not a number"}
    assert drain(jobs, session) == 1
    assert (later.state, broken.state) == ("scheduled", "scheduled")
    assert drain(jobs, session, ahead=timedelta(minutes=1)) > 2
    assert (later.state, broken.state) == ("scheduled", "scheduled")
    drain(jobs, session, ahead=timedelta(days=1))
    assert broken.attempt == 25
    assert (later.state, broken.state) == ("succeeded", "failed")


def test_priorities_and_queues_are_respected(session: Session) -> None:
    for n, priority in enumerate([0, -5, 5]):
        shop.write.options(priority=priority, queue="mail").enqueue(session, n=n)
    shop.write.enqueue(session, n=9)
    assert drain(jobs, session, queues=["mail"]) == 3
    assert list(session.scalars(select(Effect.n).order_by(Effect.id))) == [1, 0, 2]


def test_a_task_that_commits_its_session_does_not_end_the_test(session: Session) -> None:
    @jobs.task(name="commits")
    def commits(session: Session, n: int) -> None:
        session.add(Effect(n=n, kind="committed"))
        session.commit()

    one = commits.enqueue(session, n=1)
    session.commit()
    drain(jobs, session)
    assert one.state == "succeeded"
    assert list(session.scalars(select(Effect.n))) == [1]


def test_a_scoped_session_will_do(session: Session, engine: Engine) -> None:
    scoped = scoped_session(sessionmaker(engine))
    one = shop.write.enqueue(scoped, n=1)
    assert drain(jobs, scoped) == 1
    assert one.state == "succeeded"
    scoped.rollback()
    scoped.remove()


def test_a_job_that_enqueues_itself_for_ever_is_told(session: Session) -> None:
    shop.chain.enqueue(session, n=50)
    with pytest.raises(JobsError, match="after 10 runs"):
        drain(jobs, session, max_runs=10)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_it_runs_in_an_asynchronous_session_too(database: Engine, driver: str) -> None:
    async def run() -> tuple[int, list[str], list[int]]:
        engine = create_async_engine(database.url.set(drivername=f"postgresql+{driver}"))
        async with engine.connect() as connection, connection.begin() as transaction:
            async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
                await session.run_sync(shop.chain.enqueue, n=1)
                await session.run_sync(shop.flaky.options(delay=60).enqueue, good_from=2)
                await session.run_sync(shop.reports.enqueue, good=True)
                count = await session.run_sync(lambda own: drain(jobs, own, ahead=3600))
                states = (await session.scalars(select(jobs.Job.state).distinct())).all()
                effects = (await session.scalars(select(Effect.n).order_by(Effect.n))).all()
            await transaction.rollback()
        await engine.dispose()
        return count, [*map(str, states)], [*effects]

    assert asyncio.run(run()) == (5, ["succeeded"], [0, 1])
    with Session(database) as after:
        assert after.scalar(select(func.count()).select_from(jobs.Job)) == 0
