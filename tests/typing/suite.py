"""The tests of an application, with `sqla_jobs.testing`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, assert_type

import pytest
from sqlalchemy import Connection, Engine, MetaData, create_engine, select
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from sqla_jobs import AsyncRunContext, Changed, JobMixin, Jobs, RunContext
from sqla_jobs.testing import (
    Databases,
    Drained,
    assert_enqueued,
    assert_not_enqueued,
    drain,
    enqueued,
    make_job,
    run_job,
)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    settled: Mapped[bool] = mapped_column(default=False)


class TenantJob(JobMixin):
    tenant: Mapped[str | None] = mapped_column()


jobs = Jobs(Base, job_class=TenantJob)


@jobs.task
def settle(session: Session, order: Order) -> None:
    order.settled = True


@jobs.task
def count(run: RunContext, to: int) -> int:
    return to


@jobs.task
def refund(session: Session, run: RunContext, order: Order, cents: int = 0) -> dict[str, int]:
    return {"cents": cents}


@jobs.task(queue="mail")
def send(email: str, *, copies: int = 1) -> None: ...


@jobs.task
def greet(name: str) -> str:
    return name


@pytest.fixture(scope="session")
def sqla_jobs_metadata() -> MetaData:
    return Base.metadata


def test_a_count_is_given_back(session: Session) -> None:
    assert_type(
        count(RunContext(job_id=1, run_id=2, task="count", queue="default", attempt=1, max_attempts=25), to=3), int
    )
    job = count.options(delay=60).enqueue(session, to=3)
    assert_type(job, TenantJob)
    assert drain(session, jobs, queues=["default"], ahead=timedelta(minutes=2), max_runs=10).runs == 1
    assert session.scalars(select(jobs.Run.result)).one() == 3


def test_what_was_enqueued(sqla_jobs_session: Session) -> None:
    order = Order()
    sqla_jobs_session.add(order)
    settle.enqueue(sqla_jobs_session, order=order)
    assert_type(assert_enqueued(sqla_jobs_session, settle, order=order), TenantJob)
    assert_type(enqueued(sqla_jobs_session, settle.options(queue="default", delay=60)), list[TenantJob])
    assert_not_enqueued(sqla_jobs_session, send.options(priority=3), email="a@b.c")
    assert_type(assert_enqueued(sqla_jobs_session, jobs.tasks["greet"], name="Ada"), TenantJob)


def test_tasks_without_a_job(sqla_jobs_session: Session) -> None:
    order = Order()
    assert_type(run_job(sqla_jobs_session, refund, attempt=3)(order=order), dict[str, int])
    assert_type(run_job(sqla_jobs_session, settle)(order), None)
    assert_type(run_job(sqla_jobs_session, count, max_attempts=3)(to=3), int)
    run_job(sqla_jobs_session, send)("a@b.c", copies=2)
    assert_type(run_job(sqla_jobs_session, jobs.tasks["greet"])(name="Ada"), Any)


def test_errors_and_what_starts(sqla_jobs_session: Session, sqla_jobs_connection: Connection) -> None:
    drained = drain(sqla_jobs_session, jobs, errors="record", ahead=timedelta(days=1))
    assert_type(drained.errors, list[BaseException])
    assert_type(drained.waiting, list[int])
    scoped = scoped_session(sessionmaker(sqla_jobs_connection))
    job = make_job(scoped, send.options(queue="mail"), state="running", args={"email": "a@b.c"}, tenant="acme")
    assert_type(job, TenantJob)


@jobs.task
async def fetch(url: str, *, tries: int = 1) -> bytes:
    return b""


@jobs.task(queue="mail")
async def watch(run: AsyncRunContext, url: str) -> int:
    return run.attempt


@jobs.task
async def store(session: AsyncSession, order: Order) -> None:
    await session.refresh(order)


@jobs.task(max_attempts=3)
async def both(session: AsyncSession, run: AsyncRunContext, order: Order, cents: int = 0) -> dict[str, int]:
    return {"cents": cents}


@jobs.task
def anything(value: int) -> Any:
    return value


@jobs.task
async def later(value: int) -> Any:
    return value


async def coroutine_tasks(session: AsyncSession, run: AsyncRunContext, order: Order) -> None:
    assert_type(await fetch(url="x"), bytes)
    assert_type(await fetch("x", tries=2), bytes)
    assert_type(await store(session, order), None)
    assert_type(await session.run_sync(fetch.enqueue, url="x"), TenantJob)
    assert_type(await session.run_sync(fetch.options(delay=3).enqueue, "x", tries=2), TenantJob)
    assert_type(await session.run_sync(watch.enqueue, url="x"), TenantJob)
    assert_type(await session.run_sync(store.enqueue, order=order), TenantJob)
    assert_type(await session.run_sync(both.enqueue, order, cents=3), TenantJob)
    count = await session.run_sync(fetch.enqueue_many, [{"url": "x"}])
    assert_type(count.inserted + count.skipped, int)
    assert_type(await session.run_sync(jobs.cancel, 7), Changed)


async def coroutine_tasks_without_a_job(
    session: AsyncSession, scoped: async_scoped_session[AsyncSession], plain: Session, order: Order
) -> None:
    assert_type(await run_job(session, fetch)(url="x"), bytes)
    assert_type(await run_job(plain, fetch, attempt=2)("x", tries=2), bytes)
    assert_type(await run_job(session, watch)(url="x"), int)
    assert_type(await run_job(scoped, store)(order), None)
    assert_type(await run_job(session, both, max_attempts=3)(order=order), dict[str, int])
    assert_type(await run_job(session, refund)(order, cents=3), dict[str, int])
    page: bytes | None = await run_job(session, fetch)(url="x")
    assert_type(await asyncio.create_task(run_job(session, fetch)(url="x")), bytes)
    assert page == b""
    count: int = run_job(plain, anything)(3)
    assert_type(run_job(plain, anything)(value=3), Any)
    assert_type(await run_job(session, anything)(value=count), Any)
    assert_type(await run_job(session, later)(value=3), Any)
    run_job(plain, anything)(3)
    assert_type(await run_job(session, jobs.tasks["Wave"])(name="Ada"), Any)
    assert_type(await session.run_sync(drain, jobs), Drained)


def charge(order: Order, cents: int, *, note: str = "") -> Receipt:
    return Receipt(cents)


async def charge_later(order: Order, cents: int, *, note: str = "") -> Receipt:
    return Receipt(cents)


@dataclass
class Receipt:
    cents: int


def steps(session: Session, run: RunContext, order: Order) -> None:
    assert_type(run.step("charge", charge, order, 5), Receipt)
    assert_type(run.step("charge", charge, order, cents=5, note="x"), Receipt)
    assert_type(run.step("make", Receipt, 5), Receipt)
    assert_type(run.step("nothing", session.flush), None)
    run.sleep("rest", 5)
    run.sleep("rest", timedelta(days=1))
    assert_type(run.wait_for("approved", Receipt, timeout=None), Receipt)
    either: Receipt | None = run.wait_for("approved", Receipt | None, timeout=timedelta(days=1))
    assert either is not None
    assert_type(run.wait_for("approved", None, timeout=5), Any)
    assert_type(jobs.signal(session, 7, "approved", Receipt(5)), bool)
    assert_type(jobs.signal(session, jobs.Job(), "approved"), bool)
    assert_type(run_job(session, refund, signals={"approved": [Receipt(5)]})(order), dict[str, int])


async def awaited_steps(session: AsyncSession, run: AsyncRunContext, order: Order) -> None:
    assert_type(await run.step("charge", charge_later, order, 5), Receipt)
    assert_type(await run.step("charge", charge_later, order, cents=5, note="x"), Receipt)
    await run.sleep("rest", 5)
    assert_type(await run.wait_for("approved", Receipt, timeout=None), Receipt)
    fetch.options(batch=await run.batch)
    assert_type(await session.run_sync(jobs.signal, 7, "approved", Receipt(5)), bool)


@pytest.fixture(scope="session")
def sqla_jobs_engine(sqla_jobs_databases: Databases) -> Iterator[Engine]:
    with sqla_jobs_databases.new(MetaData()) as url:
        yield create_engine(url)
