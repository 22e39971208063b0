"""Coroutine tasks in the tests of applications, with the plugin of anyio."""

from __future__ import annotations

import asyncio
import traceback
import warnings
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import partial

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import ArgumentsError, Cancel, ConfigurationError, JobMixin, Jobs, RunContext, RunEvent, Snooze
from sqla_jobs.testing import assert_enqueued, assert_waits, drain, run_job, startable
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
    assert await asession.run_sync(lambda own: drain(jobs, own)) == 3
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
    drained = await asession.run_sync(lambda own: drain(jobs, own, errors="record"))
    assert [str(error) for error in drained.errors] == ["no 1"] * 3
    assert await outcomes(asession, one) == ["retried", "retried", "failed"]
    two = await asession.run_sync(shop.fail.enqueue, n=2)
    with pytest.raises(ValueError, match="no 2") as raised:
        await asession.run_sync(lambda own: drain(jobs, own))
    assert await outcomes(asession, two) == ["retried", "retried", "failed"]
    assert raised.value.__notes__[0].startswith(f"raised by job {two.id}, attempt 3 of 25 at 'fail' with {{")
    assert "in fail" in "".join(traceback.format_exception(raised.value))
    assert await effects(asession) == []


async def test_they_snooze_and_cancel_below_middleware_and_handlers(asession: AsyncSession) -> None:
    other, told = Jobs(type("Base", (DeclarativeBase,), {})), list[tuple[str, str]]()
    name: ContextVar[str] = ContextVar("name", default="none")

    @other.on("started", "snoozed", "cancelled", "succeeded")
    def tell(event: RunEvent) -> None:
        told.append((event.task, event.name))

    @other.middleware
    @contextmanager
    def named(run: RunContext) -> Generator[None]:
        token = name.set(f"{run.task} {run.attempt}")
        yield
        name.reset(token)

    @other.task(name="late")
    async def late(run: RunContext) -> str:
        await asyncio.sleep(0)
        if not told[1:]:
            raise Snooze(30)
        return name.get()

    @other.task(name="never")
    async def never(session: AsyncSession) -> None:
        session.add(Effect(n=9))
        await session.flush()
        raise Cancel("not needed")

    one = await asession.run_sync(late.enqueue)
    assert await asession.run_sync(lambda own: drain(other, own, ahead=60)) == 2
    two = await asession.run_sync(never.enqueue)
    assert await asession.run_sync(lambda own: drain(other, own)) == 1
    assert told == [
        *[("late", "started"), ("late", "snoozed"), ("late", "started"), ("late", "succeeded")],
        *[("never", "started"), ("never", "cancelled")],
    ]
    assert await outcomes(asession, one) == ["snoozed", "succeeded"]
    assert await asession.scalar(select(jobs.Run.result).where(jobs.Run.outcome == "succeeded")) == "late 1"
    assert await outcomes(asession, two) == ["cancelled"]
    assert await effects(asession) == []


async def test_limits_are_obeyed(asession: AsyncSession) -> None:
    for _ in range(3):
        await asession.run_sync(shop.limited.enqueue, seconds=0)
    assert len(await asession.run_sync(startable, jobs)) == 2
    await asession.run_sync(jobs.set_limit, shop.limited, running=0)
    one = await asession.run_sync(assert_enqueued, shop.limited)
    await asession.run_sync(partial(assert_waits, because="limit limited"), jobs, one)
    assert await asession.run_sync(lambda own: drain(jobs, own, limits=True)) == 0
    await asession.run_sync(jobs.clear_limit, shop.limited)
    assert await asession.run_sync(lambda own: drain(jobs, own, limits=True)) == 3


async def test_a_cancel_of_the_test_is_no_outcome(asession: AsyncSession) -> None:
    await asession.run_sync(shop.wait_for_cancel.enqueue, n=1)
    draining = asyncio.create_task(asession.run_sync(lambda own: drain(jobs, own, errors="record")))
    async with asyncio.timeout(20):
        while seen != ["begun"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    draining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await draining
    assert seen == ["begun", "finally"]
    assert await effects(asession) == []


async def test_run_job_is_awaited(asession: AsyncSession) -> None:
    asession.add(order := Order())
    await run_job(asession, shop.settle)(order=order)
    assert order.status == "settled"
    assert await run_job(asession, shop.note, attempt=3)(n=1) == "attempt 3"
    assert await run_job(asession, jobs.tasks["Greet"], attempt=3)(name="ann") == "hello ann, attempt 3"
    assert await effects(asession) == [1]
    with pytest.raises(ValueError, match="no 2"):
        await run_job(asession, shop.fail)(n=2)
    assert await effects(asession) == [1]
    with pytest.raises(ArgumentsError, match="argument 'order' takes a row of Order, got int"):
        await run_job(asession, shop.settle)(order=7)  # type: ignore[arg-type]


async def test_run_job_awaits_plain_tasks_in_an_asynchronous_session_too(asession: AsyncSession) -> None:
    assert await run_job(asession, shop.note_plainly, scheduled_for=datetime.now(UTC))(n=5) == "attempt 1"
    assert await asession.run_sync(lambda own: run_job(own, shop.note_plainly)(n=6)) == "attempt 1"
    assert await effects(asession) == [5, 6]


async def test_run_job_takes_the_session_of_a_scope(asession: AsyncSession) -> None:
    scoped = async_scoped_session(async_sessionmaker(bind=asession.bind), scopefunc=lambda: 1)
    assert await run_job(scoped, shop.note)(n=8) == "attempt 1"
    assert sorted(await scoped.scalars(select(Effect.n))) == [8]
    await scoped.remove()


def test_those_without_a_session_run_in_a_synchronous_test(session: Session) -> None:
    one = shop.nap.enqueue(session, seconds=0.01)
    jobs.enqueue(session, shop.Greet("ann"))
    assert drain(jobs, session) == 2
    assert one.state == "succeeded"
    assert asyncio.run(run_job(session, shop.shout)(text="hey")) == "HEY"
    shop.leave_the_program.enqueue(session)
    with pytest.raises(SystemExit):
        drain(jobs, session)


def test_a_task_with_a_session_in_a_synchronous_test_is_refused(session: Session) -> None:
    one = shop.write.enqueue(session, n=1)
    with pytest.raises(ConfigurationError, match=r"write takes an AsyncSession.*session.run_sync\(lambda own: drain"):
        drain(jobs, session)
    assert (one.state, one.attempt) == ("queued", 0)
    with pytest.raises(ConfigurationError, match=r"write takes an AsyncSession.* await run_job\(session, write\)\(…\)"):
        run_job(session, shop.write)


async def test_an_asynchronous_test_with_a_synchronous_session_is_refused(session: Session) -> None:
    one = shop.nap.enqueue(session, seconds=0.01)
    with pytest.raises(
        ConfigurationError, match="nap is a coroutine task, and drain would block its event loop: write"
    ):
        drain(jobs, session)
    assert one.state == "queued"
    assert await run_job(session, shop.shout)(text="hey") == "HEY"


async def test_a_plain_function_that_returns_a_coroutine_fails(asession: AsyncSession) -> None:
    with warnings.catch_warnings(action="error"):
        with pytest.raises(ArgumentsError, match=r"it returned the coroutine nap, .* with async def"):
            await run_job(asession, shop.forgets_to_await)(seconds=1)
        one = await asession.run_sync(shop.forgets_to_await.enqueue, seconds=1)
        with pytest.raises(Exception, match=r"forgets_to_await \(job \d+\): it returned the coroutine nap"):
            await asession.run_sync(partial(drain, jobs))
    assert await outcomes(asession, one) == ["failed"]
