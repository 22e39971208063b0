"""Jobs after jobs in every kind of session and transaction, and of every kind of task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session, registry

from sqla_jobs import ArgumentsError, AsyncRunContext, ConcurrencyLimit, Jobs, RunContext
from tests import shop
from tests.helpers import new_jobs, states
from tests.shop import jobs

Run = Callable[[], int]


@pytest.fixture
def run(database: Engine) -> Run:
    """Run all that is due, and what that queues."""
    return lambda: jobs.worker(bind=database, concurrency=4).drain()


# --- sessions and transactions


def test_a_job_that_is_gone_meanwhile_is_refused(session: Session) -> None:
    first = shop.mark.enqueue(session, n=1)
    session.commit()
    with Session(session.get_bind()) as other:
        other.execute(text("DELETE FROM sqla_jobs"))
        other.commit()
    with pytest.raises(ArgumentsError, match=f"there is no job {first.__dict__.get('id', 1)}"):
        shop.mark.options(after=first).enqueue(session, n=2)


def test_a_job_of_another_jobs_is_refused(session: Session) -> None:
    other = Jobs(registry(), prefix="other_")
    for foreign in (other.Job(id=1), other.Batch(id=1)):
        with pytest.raises(ArgumentsError, match="Jobs"):
            shop.mark.options(after=foreign).enqueue(session, n=2)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_an_async_session(driver: str, session: Session, database: Engine, run: Run) -> None:
    async def enqueue() -> int:
        engine = create_async_engine(database.url.set(drivername=f"postgresql+{driver}"))
        async with AsyncSession(engine) as own:
            batch = await own.run_sync(jobs.batch)
            first = await own.run_sync(shop.mark.options(batch=batch).enqueue, n=1)
            ids = await own.run_sync(
                shop.mark.options(after=first).enqueue_many, [{"n": n} for n in range(2, 5)], returning=True
            )
            last = await own.run_sync(shop.mark.options(after=[batch, first], if_failed="run").enqueue, n=5)
            last_id = last.id
            await own.commit()
        await engine.dispose()
        assert len(ids) == 3
        return last_id

    last_id = asyncio.run(enqueue())
    assert run() == 5
    assert states(session)[last_id] == "succeeded"


def test_a_schema_and_a_prefix(database: Engine) -> None:
    class Own(DeclarativeBase):
        pass

    own = Jobs(Own, schema="ops", prefix="q_")

    @own.task(name="nothing")
    def nothing(n: int) -> int:
        return n

    @own.task(name="total")
    def total(run: RunContext) -> int:
        return sum(run.results(nothing))

    with database.begin() as connection:
        connection.execute(text("CREATE SCHEMA ops"))
    Own.metadata.create_all(database)
    with Session(database) as session:
        batch = own.batch(session)
        nothing.options(batch=batch).enqueue_many(session, [{"n": 1}, {"n": 2}])
        last = total.options(after=batch).enqueue(session)
        session.commit()
        assert own.worker(bind=database).drain() == 3
        session.refresh(last)
        assert last.result == 3


# --- tasks


@pytest.fixture
def own() -> Jobs[Any]:
    return new_jobs()


def drained(own: Jobs[Any], database: Engine) -> int:
    return own.worker(bind=database, concurrency=4).drain()


def test_tasks_behind_limits_and_ordered_keys(own: Jobs[Any], session: Session, database: Engine) -> None:
    began: list[int] = []

    @own.task(name="one_by_one", limits=ConcurrencyLimit(1, key="key", ordered=True))
    def one_by_one(key: int, n: int) -> None:
        began.append(n)

    @own.task(name="narrow", limits=ConcurrencyLimit(1))
    def narrow(n: int) -> None:
        began.append(n)

    first = narrow.enqueue(session, n=0)
    session.flush()
    for n in (1, 2, 3):
        one_by_one.options(after=first).enqueue(session, key=1, n=n)
    session.flush()
    last = session.scalars(select(own.Job).where(own.Job.task == "one_by_one")).all()
    narrow.options(after=last).enqueue(session, n=4)
    session.commit()
    assert drained(own, database) == 5
    assert began == [0, 1, 2, 3, 4]


def test_a_coroutine_task_awaits_its_batch_and_adds_jobs_to_it(
    own: Jobs[Any], session: Session, database: Engine
) -> None:
    @own.task(name="more")
    async def more(session: AsyncSession, run: AsyncRunContext) -> bool:
        batch = await run.batch
        if batch is not None:
            await session.run_sync(alone.options(batch=batch).enqueue)
        return batch is not None

    @own.task(name="alone")
    async def alone(run: AsyncRunContext) -> bool:
        return await run.batch is not None

    @own.task(name="after")
    async def after(run: AsyncRunContext) -> list[bool]:
        assert await run.batch is None
        return [*await run.results(more), *await run.results(alone)]

    own.bind(database)
    batch = own.batch(session)
    more.options(batch=batch).enqueue(session)
    last = after.options(after=batch).enqueue(session)
    session.commit()
    assert drained(own, database) == 3
    session.refresh(last)
    assert last.result == [True, True]


# --- drains


def test_a_drain_cancels_more_jobs_than_one_look_finds(session: Session, run: Run) -> None:
    """None of them is queued, so it might take the first look for all there is."""
    session.execute(
        text(
            "INSERT INTO sqla_jobs (task, args, state, finished_at) SELECT 'mark', '{\"n\": 1}', 'failed', now() "
            "FROM generate_series(1, 1200)"
        )
    )
    session.execute(
        text(
            "WITH made AS (INSERT INTO sqla_jobs (task, args, state, waits_for, waits_at, if_failed) "
            "SELECT 'mark', '{\"n\": 2}', 'blocked', id, 1, 'cancel' FROM sqla_jobs RETURNING id, waits_for) "
            "INSERT INTO sqla_edges (job_id, place, needs_id) SELECT id, 1, waits_for FROM made"
        )
    )
    session.commit()
    assert run() == 0
    assert set(states(session).values()) == {"failed", "cancelled"}
