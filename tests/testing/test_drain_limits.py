"""`drain` with `limits=True`, which obeys limits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqla_jobs import Jobs
from sqla_jobs.testing import drain
from tests import limited_shop as shop
from tests.limited_shop import jobs


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


def test_limits_are_obeyed_and_jobs_behind_them_are_named(session: Session) -> None:
    jobs.set_limit(session, shop.rated, rate=5, per=3600)
    shop.rated.enqueue_many(session, ({"n": n} for n in range(8)))
    shop.plain.enqueue_many(session, ({"n": n} for n in range(3)))
    drained = drain(session, jobs, limits=True)
    assert drained.runs == 5 + 3
    rated = select(jobs.Job.id).where(jobs.Job.task == "rated").order_by(jobs.Job.id)
    assert drained.waiting == session.scalars(rated).all()[5:]
    assert drain(session, jobs).runs == 3


@pytest.mark.parametrize("limit", [{"which": "plain"}, {"queue": "default"}])
def test_an_operators_limit_is_obeyed(session: Session, limit: dict[str, Any]) -> None:
    which = [limit.pop("which")] if "which" in limit else []
    jobs.set_limit(session, *which, **limit, running=0)
    shop.plain.enqueue(session, n=1)
    assert len(drain(session, jobs, limits=True).waiting) == 1
    jobs.set_limit(session, *which, **limit, running=1)
    shop.plain.enqueue(session, n=2)
    assert drain(session, jobs, limits=True).runs == 2


def test_an_ordered_key_keeps_its_order(session: Session) -> None:
    for n in range(4):
        shop.ordered.enqueue(session, account=1, n=n, failures=int(n == 1))
    drained = drain(session, jobs, limits=True, errors="record")
    assert drained.runs == 2
    assert len(drained.waiting) == 2
    assert drain(session, jobs, limits=True, ahead=3600).runs == 3
    assert session.scalars(text("SELECT result FROM sqla_runs WHERE outcome = 'succeeded' ORDER BY id")).all() == [
        *range(4)
    ]


def test_groups_take_turns_as_with_workers(session: Session) -> None:
    made = {name: shop.fair.enqueue(session, tenant=name[0]) for name in ["a1", "a2", "a3", "b1", "b2", "c1"]}
    turns = [made[name] for name in ["a1", "b1", "c1", "a2", "b2", "a3"]]
    assert drain(session, jobs, limits=True).runs == 6
    assert [*session.scalars(select(jobs.Run.job_id).order_by(jobs.Run.id))] == [job.id for job in turns]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_limits_are_obeyed_in_an_asynchronous_session(database: Engine, driver: str) -> None:
    async def run() -> tuple[int, int]:
        engine = create_async_engine(database.url.set(drivername=f"postgresql+{driver}"))
        async with AsyncSession(engine) as session:
            await session.run_sync(lambda own: jobs.set_limit(own, shop.rated, rate=2, per=3600))
            await session.run_sync(shop.rated.enqueue_many, [{"n": n} for n in range(3)])
            drained = await session.run_sync(lambda own: drain(own, jobs, limits=True))
        await engine.dispose()
        return drained.runs, len(drained.waiting)

    assert asyncio.run(run()) == (2, 1)
