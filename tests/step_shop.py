"""An application of tasks with steps, sleeps and signals, for workers in this process and in others."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from sqlalchemy import NullPool, create_engine, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tenacity import Retrying, wait_fixed

from sqla_jobs import AsyncRunContext, ConcurrencyLimit, Jobs, RunContext, SignalTimeout


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)
FAST = Retrying(wait=wait_fixed(0))
calls: list[str] = []
"""What was called in this process, in order."""
begun, gate = threading.Event(), threading.Event()


class Effect(Base):
    """What a step did; a doubled one shows as two rows."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    paid: Mapped[int] = mapped_column(default=0)


@dataclass
class Receipt:
    number: int
    total: Decimal
    lines: tuple[int, ...] = ()


@dataclass
class Approval:
    by: str


class Failed(Exception):
    """What a task raises at the end of its first attempts."""


def fail_until(run: RunContext, attempt: int) -> None:
    if run.attempt < attempt:
        raise Failed(f"attempt {run.attempt}")


def charge(amount: Decimal) -> Receipt:
    calls.append("charge")
    return Receipt(len(calls), amount, (1, 2))


def pair() -> tuple[int, str]:
    calls.append("pair")
    return 1, "one"


def nothing() -> None:
    calls.append("nothing")


@jobs.task(retry=FAST)
def plain(run: RunContext, amount: Decimal) -> list[str]:
    receipt = run.step("charge", charge, amount)
    both = run.step("pair", pair)
    run.step("nothing", nothing)
    fail_until(run, 3)
    return [repr(receipt), repr(both)]


async def charge_awaited(amount: Decimal) -> Receipt:
    return charge(amount)


@jobs.task(retry=FAST)
async def awaited(run: AsyncRunContext, amount: Decimal) -> list[str]:
    receipt = await run.step("charge", charge_awaited, amount)
    fail_until(run, 3)
    return [repr(receipt)]


def write(session: Session, kind: str) -> str:
    calls.append(kind)
    session.add(Effect(kind=kind))
    return kind


def pay(session: Session, order: Order) -> int:
    calls.append("pay")
    order.paid += 1
    session.add(Effect(kind="paid"))
    return order.paid


@jobs.task(retry=FAST)
def transactional(session: Session, run: RunContext, order: Order) -> list[int]:
    paid = run.step("pay", pay, session, order)
    seen = order.paid
    run.step("mail", write, session, "mailed")
    session.add(Effect(kind="end"))
    fail_until(run, 3)
    return [paid, seen]


async def write_awaited(session: AsyncSession, kind: str) -> str:
    calls.append(kind)
    session.add(Effect(kind=kind))
    await session.flush()
    return kind


async def pay_awaited(session: AsyncSession, order: Order) -> int:
    order.paid += 1
    return order.paid


@jobs.task(retry=FAST)
async def transactional_awaited(session: AsyncSession, run: AsyncRunContext, order: Order) -> list[int]:
    paid = await run.step("pay", pay_awaited, session, order)
    seen = order.paid
    await run.step("mail", write_awaited, session, "mailed")
    session.add(Effect(kind="end"))
    fail_until(run, 2)
    return [paid, seen, order.paid]


@jobs.task(max_attempts=1)
def writes_before(session: Session, run: RunContext, how: str) -> None:
    match how:
        case "pending":
            session.add(Effect(kind="before"))
        case "changed":
            session.get_one(Order, 1).paid = 7
        case "flushed":
            session.add(Effect(kind="before"))
            session.flush()
        case "locked":
            session.scalars(select(Order).with_for_update()).all()
        case "numbered":
            session.execute(select(func.nextval("effects_id_seq")))
        case "follow-up":
            plain.enqueue(session, amount=Decimal(1))
        case _:
            session.scalars(select(Order)).all()
    run.step("write", write, session, "inside")


@jobs.task(max_attempts=1)
def sleeps_after_write(session: Session, run: RunContext) -> None:
    session.add(Effect(kind="before"))
    run.sleep("rest", 1)


@jobs.task(max_attempts=1)
def writes_and_fails_in_step(session: Session, run: RunContext) -> str:
    def broken() -> None:
        write(session, "broken")
        session.flush()
        raise Failed("no")

    with suppress(Failed):
        run.step("write", broken)
    return run.step("write", write, session, "whole")


@jobs.task(retry=FAST)
def twice(run: RunContext) -> None:
    run.step("same", nothing)
    run.step("same", nothing)


@jobs.task(max_attempts=1)
def nested(session: Session, run: RunContext) -> None:
    run.step("outer", lambda: run.step("inner", write, session, "inner"))


RETURNED: dict[str, object] = {
    "set": {1},
    "tuple": (1, 2),
    "NUL": "a\0b",
    "NaN": float("nan"),
    "large": "x" * 1_100_000,
}


@jobs.task(retry=FAST)
def unstorable(run: RunContext, what: str) -> None:
    calls.append("run")
    unannotated: Callable[[str], object] = globals()["_unannotated"]
    run.step("value", unannotated, what)


def _unannotated(what: str):  # type: ignore[no-untyped-def]
    return RETURNED[what]


@jobs.task(max_attempts=1)
def many_steps(run: RunContext, number: int) -> None:
    for n in range(number):
        run.step(f"step {n}", int)


@jobs.task
def sleeper(run: RunContext, seconds: float) -> int:
    run.step("before", nothing)
    run.sleep("rest", timedelta(seconds=seconds))
    run.step("after", nothing)
    return run.attempt


@jobs.task
async def awaited_sleeper(run: AsyncRunContext, seconds: float) -> int:
    calls.append("before")
    await run.sleep("rest", seconds)
    calls.append("after")
    return run.attempt


@jobs.task
def transactional_sleeper(session: Session, run: RunContext, seconds: float) -> None:
    run.step("before", write, session, "before")
    run.sleep("rest", seconds)
    session.add(Effect(kind="after"))


def take(cents: int) -> int:
    calls.append(f"charged {cents}")
    return cents


@jobs.task(delay=0, max_attempts=3)
def charges_and_tells(run: RunContext, account: int, cents: int, how: str) -> str:
    """`how` says what comes between the charge and the mail."""
    run.step("charge", take, cents)
    if how == "sleep":
        run.sleep("rest", 100)
    elif how == "wait":
        run.wait_for("approved", Approval, timeout=None)
    elif how == "fail":
        fail_until(run, 2)
    calls.append(f"told of {cents}")
    return how


@jobs.task(retry=FAST)
def approved(run: RunContext, timeout: float | None = None, fails: int = 0) -> str:
    calls.append("run")
    try:
        approval = run.wait_for("approved", Approval, timeout=timeout)
    except SignalTimeout:
        fail_until(run, 1 + fails)
        return "timeout"
    fail_until(run, 1 + fails)
    return approval.by


@jobs.task
def approved_twice(session: Session, run: RunContext) -> list[str]:
    first = run.wait_for("approved", Approval, timeout=None)
    second = run.wait_for("approved", Approval, timeout=None)
    return [first.by, second.by]


@jobs.task
async def approved_awaited(run: AsyncRunContext) -> str:
    approval = await run.wait_for("approved", Approval, timeout=None)
    return approval.by


@jobs.task
async def approved_in_async_session(session: AsyncSession, run: AsyncRunContext) -> str:
    await run.step("before", write_awaited, session, "before")
    approval = await run.wait_for("approved", Approval, timeout=None)
    await run.step("after", write_awaited, session, approval.by)
    return approval.by


@jobs.task
def dies_in_step(session: Session, run: RunContext) -> None:
    """Each of its steps commits, and the process is killed inside of the second and after the third."""
    run.step("first", write, session, "first")
    run.step("second", write_and_die, session, run.attempt)
    run.step("third", write, session, "third")
    session.add(Effect(kind="end"))
    session.flush()
    if run.attempt == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def write_and_die(session: Session, attempt: int) -> None:
    write(session, "second")
    session.flush()
    if attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@jobs.task
def stopped_in_step(session: Session, run: RunContext, seconds: float) -> None:
    run.step("first", write, session, "first")
    run.step("second", write_slowly, session, seconds if run.attempt == 1 else 0.0)


def write_slowly(session: Session, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
    write(session, "second")


def effects(session: Session) -> dict[str, int]:
    """How often each effect was committed."""
    found = session.execute(select(Effect.kind, func.count()).group_by(Effect.kind))
    return {row[0]: row[1] for row in found}


@jobs.task
def waits_at_the_gate(run: RunContext) -> str:
    begun.set()
    gate.wait(20)
    return run.wait_for("approved", Approval, timeout=None).by


@jobs.task(max_attempts=1)
def loses_lease(run: RunContext) -> None:
    begun.set()
    gate.wait(20)
    try:
        run.step("inside", calls.append, "inside")
    except Exception:  # noqa: BLE001
        calls.append("caught")
    calls.append("went on")


@jobs.task(max_attempts=1)
def loses_lease_in_transaction(session: Session, run: RunContext) -> None:
    begun.set()
    gate.wait(20)
    try:
        run.step("inside", write, session, "inside")
    except Exception:  # noqa: BLE001
        calls.append("caught")
    calls.append("went on")


@jobs.task(timeout=1.0, retry=FAST)
def times_out(session: Session, run: RunContext) -> None:
    run.step("slow", write, session, "slow")
    session.add(Effect(kind="end"))


async def number(n: int) -> int:
    return n


@jobs.task(max_attempts=1)
async def gathers(run: AsyncRunContext) -> list[int]:
    return await asyncio.gather(*(run.step(str(n), number, n) for n in (1, 2, 3)))


@jobs.task(sensitive=["password"])
def sensitive(run: RunContext, password: str) -> None:
    run.step("log in", str, password)


@jobs.task(retention={"succeeded": "erase"})
def erased(run: RunContext) -> None:
    run.step("pair", pair)


@jobs.task(retention={"succeeded": "erase"})
def erased_in_session(session: Session, run: RunContext) -> None:
    run.step("write", write, session, "write")


async def write_and_hang(session: AsyncSession, kind: str, within: asyncio.Timeout) -> None:
    """Let the time run out only when the write is done: psycopg 3.2.1 swallows a cancel that strikes in a query."""
    await write_awaited(session, kind)
    within.reschedule(asyncio.get_running_loop().time())
    await asyncio.sleep(60)


@jobs.task(max_attempts=1)
async def cancels_its_step(session: AsyncSession, run: AsyncRunContext, order: Order) -> int:
    with suppress(TimeoutError):
        async with asyncio.timeout(None) as within:
            await run.step("write", write_and_hang, session, "hung", within)
    await run.step("write", write_awaited, session, "whole")
    return order.paid


def enqueue_another(session: Session) -> None:
    plain.options(max_attempts=1).enqueue(session, amount=Decimal(1))


@jobs.task
def enqueues_in_step(session: Session, run: RunContext) -> None:
    run.step("enqueue", enqueue_another, session)
    assert gate.wait(20)


@jobs.task(limits=[ConcurrencyLimit(1)])
def limited_sleeper(run: RunContext, seconds: float) -> None:
    run.sleep("rest", seconds)


@jobs.task(limits=ConcurrencyLimit(1, key="account", ordered=True))
def approved_in_order(run: RunContext, account: int) -> str:
    run.sleep("rest", 0)
    return run.wait_for("approved", Approval, timeout=None).by


@jobs.task(max_attempts=100)
def busy(session: Session, run: RunContext, n: int) -> None:
    """Several steps, each of which takes a moment."""
    for step in range(4):
        run.step(f"step {step}", write_a_moment, session, f"{n}.{step}")
    run.sleep("rest", 0.05)
    write_a_moment(session, f"{n}.end")


def write_a_moment(session: Session, kind: str) -> None:
    write(session, kind)
    session.flush()
    time.sleep(0.02)


@jobs.task(max_attempts=1)
async def writes_before_awaited(session: AsyncSession, run: AsyncRunContext) -> None:
    await write_awaited(session, "outside")
    await run.step("write", write_awaited, session, "inside")


def wait_for_effect(session: Session, kind: str) -> None:
    while not session.scalar(select(func.count()).where(Effect.kind == kind)):
        time.sleep(0.02)


@jobs.task(max_attempts=1)
def bystander(session: Session) -> None:
    wait_for_effect(session, "end")


def await_go(url: str, kind: str) -> None:
    """Wait until a test says "go", and tell the test, in a session of its own."""
    with Session(create_engine(url, poolclass=NullPool)) as session:
        wait_for_effect(session, "go")
        session.add(Effect(kind=kind))
        session.commit()


def await_go_and_write(session: Session, url: str) -> None:
    await_go(url, "told in a session")
    session.add(Effect(kind="written"))


async def awaited_go(url: str) -> None:
    await asyncio.to_thread(await_go, url, "told by a coroutine")


async def awaited_go_and_write(session: AsyncSession, url: str) -> None:
    await asyncio.to_thread(await_go, url, "told by a coroutine in a session")
    session.add(Effect(kind="written"))


@jobs.task(max_attempts=1, timeout=3.0)
def held_at_its_end(session: Session, url: str) -> None:
    await_go_and_write(session, url)


@jobs.task(max_attempts=1, timeout=3.0)
def held_at_a_step(run: RunContext, url: str) -> None:
    run.step("go", await_go, url, "told")


@jobs.task(max_attempts=1, timeout=3.0)
def held_at_a_step_in_session(session: Session, run: RunContext, url: str) -> None:
    run.step("go", await_go_and_write, session, url)


@jobs.task(max_attempts=1, timeout=3.0)
async def held_at_an_awaited_step(run: AsyncRunContext, url: str) -> None:
    await run.step("go", awaited_go, url)


@jobs.task(max_attempts=1, timeout=3.0)
async def held_at_an_awaited_step_in_session(session: AsyncSession, run: AsyncRunContext, url: str) -> None:
    await run.step("go", awaited_go_and_write, session, url)


@jobs.task(max_attempts=1)
def one_step(run: RunContext) -> tuple[int, str]:
    return run.step("pair", pair)


@jobs.task(max_attempts=1)
async def in_a_thread_of_asyncio() -> None:
    await asyncio.to_thread(pair)


@jobs.task(max_attempts=1)
async def steps_beside_busy_threads(run: AsyncRunContext) -> list[int]:
    """All threads of the event loop's own pool wait until the step is stored."""
    stored = threading.Event()
    busy = [asyncio.ensure_future(asyncio.to_thread(stored.wait, 20)) for _ in range(40)]
    await asyncio.sleep(0)
    found = await run.step("number", number, 1)
    stored.set()
    return [found, *map(int, await asyncio.gather(*busy))]


def amounts() -> dict[str, float]:
    return {"zoe": 1e3, "ann": 2, "bob": 3.50, "al": -0.0}


@jobs.task(retry=FAST)
def charges_in_order(run: RunContext) -> None:
    calls.append(repr(run.step("amounts", amounts)))
    fail_until(run, 2)


@jobs.task(retry=FAST)
def charges_in_order_in_session(session: Session, run: RunContext) -> None:
    calls.append(repr(run.step("amounts", amounts)))
    fail_until(run, 2)


async def amounts_awaited() -> dict[str, float]:
    return amounts()


@jobs.task(retry=FAST)
async def charges_in_order_awaited(session: AsyncSession, run: AsyncRunContext) -> None:
    calls.append(repr(await run.step("amounts", amounts_awaited)))
    fail_until(run, 2)


def write_and_exit(session: Session) -> None:
    write(session, "half")
    session.flush()
    raise SystemExit


@jobs.task(max_attempts=1)
def exits_in_step(session: Session, run: RunContext) -> None:
    with suppress(SystemExit):
        run.step("exit", write_and_exit, session)
    run.step("whole", write, session, "whole")


async def write_and_exit_awaited(session: AsyncSession) -> None:
    await write_awaited(session, "half")
    raise SystemExit


@jobs.task(max_attempts=1)
async def exits_in_awaited_step(session: AsyncSession, run: AsyncRunContext) -> None:
    with suppress(SystemExit):
        await run.step("exit", write_and_exit_awaited, session)
    await run.step("whole", write_awaited, session, "whole")
