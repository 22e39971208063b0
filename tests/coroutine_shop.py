"""An application of coroutine tasks, for workers in this process and in others."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

from sqlalchemy import ForeignKey, create_engine, make_url, select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from sqla_jobs import AsyncRunContext, Cancel, Jobs, Retry, RunContext, Snooze


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)


def over_asyncpg() -> Jobs[Any]:
    """The application as one that binds itself: to the database of SHOP_URL, for coroutines through asyncpg."""
    url = make_url(os.environ["SHOP_URL"])
    jobs.bind(create_engine(url), async_bind=create_async_engine(url.set(drivername="postgresql+asyncpg")))
    return jobs


class Effect(Base):
    """What a job did; a doubled one shows as two rows of one n."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int]
    job_id: Mapped[int | None] = mapped_column(ForeignKey("sqla_jobs.id"))


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")


FAST = Retrying(stop=stop_after_attempt(3), wait=wait_fixed(0))
seen: list[Any] = []
"""What runs in this process have told."""
resource: ContextVar[str] = ContextVar("resource", default="none")


@jobs.task
async def write(session: AsyncSession, run: AsyncRunContext, n: int, seconds: float = 0.0) -> int:
    """A transactional effect."""
    session.add(Effect(n=n, job_id=run.job_id))
    await session.flush()
    await asyncio.sleep(seconds)
    return n


@jobs.task(retention={"succeeded": "erase"})
async def forget(session: AsyncSession, run: AsyncRunContext, n: int) -> int:
    """The same, of which only the effect is to be left."""
    return await write(session, run, n)


@jobs.task
def write_plainly(session: Session, run: RunContext, n: int, seconds: float = 0.0) -> int:
    """The same in a thread."""
    session.add(Effect(n=n, job_id=run.job_id))
    session.flush()
    time.sleep(seconds)
    return n


@jobs.task
async def greet(run: AsyncRunContext, name: str) -> str:
    await asyncio.sleep(0)
    return f"hello {name}, attempt {run.attempt}"


@jobs.task
async def note(session: AsyncSession, run: AsyncRunContext, n: int) -> str:
    """One that needs no job."""
    session.add(Effect(n=n))
    await session.flush()
    return f"attempt {run.attempt}"


@jobs.task
async def settle(session: AsyncSession, order: Order) -> None:
    order.status = "settled"
    await session.run_sync(nothing.enqueue)


@jobs.task
async def nothing() -> None: ...


@jobs.task
async def shout(text: str) -> str:
    await asyncio.sleep(0)
    return text.upper()


@jobs.task
async def nap(seconds: float) -> None:
    await asyncio.sleep(seconds)


@jobs.task
def nap_plainly(seconds: float) -> None:
    time.sleep(seconds)


@jobs.task(retry=FAST)
async def fail(session: AsyncSession, n: int) -> None:
    session.add(Effect(n=n))
    await session.flush()
    raise ValueError(f"no {n}")


@jobs.task(retry=Retrying(retry=retry_if_exception_type(OSError), wait=wait_fixed(60)))
async def ask_all(answers: list[str]) -> None:
    """Waits for children in groups, whose errors come as ExceptionGroups."""

    async def ask(answer: str) -> None:
        match answer:
            case "snooze":
                raise Snooze(3600)
            case "later":
                raise Snooze(7200)
            case "cancel":
                raise Cancel("not needed")
            case "again":
                raise Retry(7200)
            case _:
                raise OSError("busy") if answer == "busy" else ValueError("wrong")

    async with asyncio.TaskGroup(), asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(60))
        for answer in answers:
            group.create_task(ask(answer))


@jobs.task(timeout=0.3, max_attempts=1)
async def deaf(session: AsyncSession, order: Order, seconds: float) -> None:
    """Holds a row locked and lets no CancelledError through."""
    order.status = "held"
    await session.flush()
    await let_no_cancel_through(seconds, "cancelled")


async def let_no_cancel_through(seconds: float, told: str) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append(told)


@jobs.task
async def keep(session: AsyncSession, n: int) -> None:
    """Leaves its session to others."""
    session.add(Effect(n=n))
    await session.flush()
    seen.append(session)


async def misuse(session: AsyncSession, n: int) -> list[str]:
    """What comes of each way to begin anew with a session."""

    async def add() -> None:
        session.add(Effect(n=n))
        await session.commit()

    ways = [session.execute(select(Effect.n)), add(), session.get(Effect, n), session.connection()]
    return [type(error).__name__ for error in [await _error(way) for way in ways]]


async def _error(way: Awaitable[object]) -> InvalidRequestError | None:
    try:
        await way
    except InvalidRequestError as error:
        return error
    return None


@jobs.task
async def misuse_what_was_kept(n: int) -> None:
    (session,) = seen
    seen.extend(await misuse(session, n))


@jobs.task(timeout=0.3, max_attempts=1)
async def deaf_misuse(session: AsyncSession, n: int, seconds: float) -> None:
    """Lets no CancelledError through, and goes on after it is abandoned."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(left)
    seen.extend(await misuse(session, n))


@jobs.task
async def wait_for_cancel(session: AsyncSession, n: int) -> None:
    session.add(Effect(n=n))
    await session.flush()
    seen.append("begun")
    try:
        await asyncio.sleep(60)
    finally:
        seen.append("finally")


@jobs.task
async def stay() -> None:
    seen.append("begun")
    await asyncio.sleep(60)


@jobs.task
async def leave_behind(session: AsyncSession, n: int) -> None:
    async def forgotten() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            seen.append("forgotten ended")

    asyncio.create_task(forgotten(), name="forgotten")  # noqa: RUF006
    await asyncio.sleep(0)
    session.add(Effect(n=n))


@jobs.task
async def block(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251


@jobs.task(max_attempts=1)
async def leave_the_program() -> None:
    raise SystemExit(3)


@jobs.task(timeout=0.3, max_attempts=1)
async def block_for_ever() -> None:
    time.sleep(3600)  # noqa: ASYNC251


@jobs.task(timeout=0.3, max_attempts=1)
async def deaf_twice(seconds: float) -> None:
    """Neither it nor what it has begun lets a cancel through."""
    asyncio.create_task(let_no_cancel_through(seconds, "child"), name="deaf child")  # noqa: RUF006
    await let_no_cancel_through(seconds, "child")


@jobs.task
async def tell_resource() -> str:
    return resource.get()
