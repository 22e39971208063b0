"""Coroutine tasks in the tests of applications, with the plugin of anyio."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sqla_jobs import ArgumentsError, JobMixin
from sqla_jobs.testing import assert_enqueued, drain, run_job
from tests import coroutine_shop as shop
from tests.coroutine_shop import Effect, Order, jobs, seen
from tests.testing.sessions import DRIVERS, rolled_back

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=DRIVERS)
async def asession(coroutine_url: str, request: pytest.FixtureRequest) -> AsyncIterator[AsyncSession]:
    seen.clear()
    async with rolled_back(coroutine_url, request.param) as session:
        yield session


@pytest.fixture
def session(coroutine_url: str) -> Iterator[Session]:
    seen.clear()
    engine = create_engine(coroutine_url)
    with Session(engine) as session:
        yield session
    engine.dispose()


async def effects(session: AsyncSession) -> list[int]:
    return sorted(await session.scalars(select(Effect.n)))


async def outcomes(session: AsyncSession, job: JobMixin) -> list[str]:
    await session.refresh(job)
    rows = await session.scalars(select(jobs.Run.outcome).where(jobs.Run.job_id == job.id).order_by(jobs.Run.id))
    return [str(outcome) for outcome in rows]


async def test_drain_gives_them_the_session_of_the_test(asession: AsyncSession) -> None:
    asession.add(order := Order())
    one = await asession.run_sync(shop.settle.enqueue, order=order)
    two = await asession.run_sync(shop.write.enqueue, n=7)
    assert (await asession.run_sync(drain, jobs)).runs == 3
    await asession.refresh(order)
    await asession.refresh(one)
    assert (order.status, one.state) == ("settled", "succeeded")
    await asession.refresh(two)
    assert await asession.scalar(select(jobs.Run.result).where(jobs.Run.job_id == two.id)) == 7
    assert await effects(asession) == [7]
    await asession.run_sync(assert_enqueued, shop.nothing)
    await asession.rollback()
    assert await effects(asession) == []


async def test_failures_are_raised_and_recorded_as_those_of_plain_tasks(asession: AsyncSession) -> None:
    one = await asession.run_sync(shop.fail.enqueue, n=1)
    drained = await asession.run_sync(lambda own: drain(own, jobs, errors="record"))
    assert [str(error) for error in drained.errors] == ["no 1"] * 3
    assert await outcomes(asession, one) == ["retried", "retried", "failed"]
    two = await asession.run_sync(shop.fail.enqueue, n=2)
    with pytest.raises(ValueError, match="no 2") as raised:
        await asession.run_sync(drain, jobs)
    assert await outcomes(asession, two) == ["retried", "retried", "failed"]
    assert raised.value.__notes__[0].startswith(f"raised by job {two.id}, ")
    assert "in fail" in "".join(traceback.format_exception(raised.value))
    assert await effects(asession) == []


async def test_run_job_is_awaited(asession: AsyncSession) -> None:
    asession.add(order := Order())
    await run_job(asession, shop.settle)(order=order)
    assert order.status == "settled"
    assert await run_job(asession, shop.note, attempt=3)(n=1) == "attempt 3"
    assert await run_job(asession, jobs.tasks["greet"], attempt=3)(name="ann") == "hello ann, attempt 3"
    assert await effects(asession) == [1]
    with pytest.raises(ValueError, match="no 2"):
        await run_job(asession, shop.fail)(n=2)
    assert await effects(asession) == [1]
    with pytest.raises(ArgumentsError, match="'order'"):
        await run_job(asession, shop.settle)(order=7)  # type: ignore[arg-type]


def test_those_without_a_session_run_in_a_synchronous_test(session: Session) -> None:
    one = shop.nap.enqueue(session, seconds=0.01)
    shop.greet.enqueue(session, "ann")
    assert drain(session, jobs).runs == 2
    assert one.state == "succeeded"
    assert asyncio.run(run_job(session, shop.shout)(text="hey")) == "HEY"
    shop.leave_the_program.enqueue(session)
    with pytest.raises(SystemExit):
        drain(session, jobs)
