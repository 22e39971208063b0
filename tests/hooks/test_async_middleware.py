"""Asynchronous middleware, which is around coroutine tasks alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from sqlalchemy import Engine, event, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import AsyncRunContext, Jobs, RunContext


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)
order: list[str] = []
tenant: ContextVar[str] = ContextVar("tenant", default="none")
misbehaves: list[str] = []


@pytest.fixture
def application() -> Jobs[Any]:
    order.clear()
    misbehaves.clear()
    return jobs


@jobs.middleware
@asynccontextmanager
async def outer(run: RunContext) -> AsyncGenerator[None]:
    order.append("outer begins")
    await asyncio.sleep(0)
    if "before" in misbehaves:
        raise LookupError("before the run")
    token = tenant.set("acme")
    own = asyncio.current_task()
    try:
        yield
    except BaseException as error:
        order.append(f"outer sees {type(error).__name__}")
        if "swallows" not in misbehaves:
            raise
    finally:
        assert asyncio.current_task() is own
        tenant.reset(token)
        order.append("outer ends")
        if "after" in misbehaves:
            raise LookupError("after the run")


@jobs.middleware
@contextmanager
def plain(run: RunContext) -> Generator[None]:
    order.append("plain begins")
    yield
    order.append("plain ends")


@jobs.middleware
@asynccontextmanager
async def inner(run: RunContext) -> AsyncGenerator[None]:
    order.append("inner begins")
    yield
    order.append("inner ends")


@jobs.task(max_attempts=1)
async def fetch(run: AsyncRunContext) -> str:
    order.append("runs")
    return tenant.get()


@jobs.task(max_attempts=1)
async def settle(session: AsyncSession) -> str:
    await session.execute(text("SELECT 1"))
    order.append("runs")
    return tenant.get()


@jobs.task(max_attempts=1)
async def breaks() -> None:
    raise ValueError("of the task")


@jobs.task(max_attempts=1, timeout=0.2)
async def hangs() -> None:
    await asyncio.sleep(60)


@jobs.task
def synchronous() -> str:
    order.append("runs")
    return tenant.get()


AWAITED = ["outer begins", "inner begins", "runs", "inner ends", "outer ends"]


def ran(session: Session, task: str) -> tuple[str, Any, str | None]:
    """The outcome, result and error of one run in a worker."""
    job = jobs.tasks[task].enqueue(session)
    session.commit()
    assert jobs.worker().drain() == 1
    session.rollback()
    outcome, result, error = session.execute(
        select(jobs.Run.outcome, jobs.Run.result, jobs.Run.error_type).where(jobs.Run.job_id == job.id)
    ).one()
    return str(outcome), result, error


def test_it_is_inside_plain_middleware_in_the_asyncio_task_of_the_coroutine(session: Session) -> None:
    assert ran(session, "fetch") == ("succeeded", "acme", None)
    assert order == ["plain begins", *AWAITED, "plain ends"]


def test_the_commit_of_a_transactional_coroutine_follows_when_it_is_left(database: Engine, database_url: str) -> None:
    bound = create_async_engine(database_url)
    event.listen(bound.sync_engine, "begin", lambda *_: order.append("BEGIN"))
    event.listen(bound.sync_engine, "commit", lambda *_: order.append("COMMIT"))
    jobs.bind(database, async_bind=bound)
    with Session(database) as session:
        assert ran(session, "settle") == ("succeeded", "acme", None)
    begun = order.index("BEGIN")
    assert order[begun:] == ["BEGIN", *AWAITED, "COMMIT", "plain ends"]


@pytest.mark.parametrize(
    ("task", "what", "ended"),
    [
        ("fetch", "before", ("failed", None, "LookupError")),
        ("fetch", "after", ("succeeded", "acme", None)),
        ("breaks", "swallows", ("failed", None, "ValueError")),
        ("hangs", "swallows", ("failed", None, "TimeoutError")),
    ],
)
def test_it_changes_no_outcome(
    session: Session, task: str, what: str, ended: tuple[str, Any, str | None], caplog: pytest.LogCaptureFixture
) -> None:
    misbehaves.append(what)
    assert ran(session, task) == ended
    if task == "hangs":
        assert "outer sees CancelledError" in order
    assert ("its context or middleware failed on exit" in caplog.text) == (what == "after")


def test_a_plain_task_runs_without_it(session: Session) -> None:
    assert ran(session, "synchronous") == ("succeeded", "none", None)
    assert order == ["plain begins", "runs", "plain ends"]
