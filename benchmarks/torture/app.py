"""The application under torture. Each task leaves effects that can be counted, and each job has its own number.

Tasks named `…_awaited` do in the event loop what those named without it do.
"""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from sqlalchemy import BigInteger, Engine, NullPool, Text, create_engine, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tenacity import Retrying, wait_random

from sqla_jobs import AsyncRunContext, ConcurrencyLimit, JobMixin, Jobs, RateLimit, RunContext, SignalTimeout, Snooze

POISONED = 86
"""The exit code of a process that was ended by its own job, on purpose."""
LEFT_FOR = 60.0
"""Seconds for which jobs of `litter` leave something behind: longer than a worker may take to end."""
SECOND_URL = "TORTURE_SECOND_URL"
"""The environment variable with the URL of the second database. Without it, the first database is used."""


class Base(DeclarativeBase): ...


class SecondBase(DeclarativeBase): ...


class TortureJob(JobMixin):
    oddity: Mapped[str | None] = mapped_column(Text)
    """What is special about the row; `hostile` defines the values."""


jobs = Jobs(Base, job_class=TortureJob)


class Effect(Base):
    """A record that a run did its work, even if the run itself could not be recorded."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    n: Mapped[int] = mapped_column(BigInteger)
    task: Mapped[str] = mapped_column(Text)
    job_id: Mapped[int] = mapped_column(BigInteger)
    run_id: Mapped[int] = mapped_column(BigInteger)


class Trace(Base):
    """A record of one call of a step, with the value that it returned."""

    __tablename__ = "traces"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    job_id: Mapped[int] = mapped_column(BigInteger)
    step: Mapped[str] = mapped_column(Text)
    value: Mapped[str] = mapped_column(Text)


class Echo(SecondBase):
    """A record of a run in the second database."""

    __tablename__ = "echoes"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    job_id: Mapped[int] = mapped_column(BigInteger)
    run_id: Mapped[int] = mapped_column(BigInteger)


SOON = Retrying(wait=wait_random(0.05, 0.5))
_STEPS = ConcurrencyLimit(12, name="steps")
"""The limit that four tasks share."""


def _effect(run: RunContext, n: int) -> Effect:
    return Effect(n=n, task=run.task, job_id=run.job_id, run_id=run.run_id)


def _leave(session: Session, run: RunContext, n: int, seconds: float = 0.0) -> None:
    """Leave a transactional effect, and then work for a while before the commit."""
    session.add(_effect(run, n))
    session.flush()
    time.sleep(seconds)


def _fail(now: bool) -> None:
    if now:
        raise RuntimeError("this attempt fails")


def _commit(row: Base, seconds: float) -> None:
    """Commit a row, and then work for a while."""
    with jobs._binding().session_factory() as session:
        session.add(row)
        session.commit()
    time.sleep(seconds)


@jobs.task(retry=SOON)
def write(session: Session, run: RunContext, n: int, seconds: float) -> None:
    _leave(session, run, n, seconds)


@jobs.task(retry=SOON, limits=RateLimit(30, per=1.0))
def mark(run: RunContext, n: int, seconds: float) -> None:
    _commit(_effect(run, n), seconds)


@jobs.task(max_attempts=1, limits=RateLimit(5, per=1.0))
def once(run: RunContext, n: int, seconds: float) -> None:
    """Do the same as `mark`. The job may begin only once."""
    _commit(_effect(run, n), seconds)


@jobs.task(retry=SOON, limits=ConcurrencyLimit(2, key=lambda arguments: arguments["n"] % 5))
def both(session: Session, run: RunContext, n: int, seconds: float) -> None:
    """Leave an effect in each of two databases. Every third job loses its second connection before the commit."""
    second = _second_engine()
    session.bind_mapper(Echo, second)
    session.add(Echo(job_id=run.job_id, run_id=run.run_id))
    _leave(session, run, n, seconds)
    if run.attempt == 1 and n % 3 == 0:
        backend = session.scalar(select(func.pg_backend_pid()), bind_arguments={"mapper": Echo})
        with second.connect() as connection:
            connection.execute(select(func.pg_terminate_backend(backend, 5000)))


def _second_engine() -> Engine:
    """Return an engine that keeps no connection open, and notices within seconds if the server is gone."""
    url = os.environ.get(SECOND_URL) or jobs._binding().engine.url
    return create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 5, "tcp_user_timeout": 5000})


@jobs.task(retry=SOON, limits=_STEPS)
def chain(session: Session, run: RunContext, n: int, seconds: float) -> None:
    """Leave a transactional effect and enqueue a follow-up job, in one commit."""
    follow.enqueue(session, n=n, seconds=seconds / 2)
    _leave(session, run, n, seconds)


@jobs.task(retry=SOON, limits=_STEPS)
def follow(session: Session, run: RunContext, n: int, seconds: float) -> None:
    """Run as the follow-up job of `chain` and `chain_awaited`."""
    _leave(session, run, n, seconds)


@jobs.task(retry=SOON, limits=[_STEPS, ConcurrencyLimit(4)])
def snooze(session: Session, run: RunContext, n: int, seconds: float) -> None:
    """Snooze once, even if runs are lost in between."""
    _leave(session, run, n)
    if not session.scalar(select(jobs.Run.id).where(jobs.Run.job_id == run.job_id, jobs.Run.outcome == "snoozed")):
        raise Snooze(seconds)
    time.sleep(seconds)


@jobs.task(retry=SOON, limits=ConcurrencyLimit(1, key=lambda arguments: arguments["n"] % 20, ordered=True))
def flaky(session: Session, run: RunContext, n: int, seconds: float) -> None:
    """Leave an effect, and then fail in the first attempt."""
    _leave(session, run, n, seconds)
    _fail(run.attempt == 1)


@jobs.task(retry=SOON, timeout=0.5)
def overrun(session: Session, run: RunContext, n: int, seconds: float) -> None:
    """Leave an effect, and then exceed the timeout in the first attempt."""
    _leave(session, run, n)
    end = time.monotonic() + (60.0 if run.attempt == 1 else min(seconds, 0.1))
    while time.monotonic() < end:
        time.sleep(0.005)


@jobs.task(retry=SOON)
async def write_awaited(session: AsyncSession, run: AsyncRunContext, n: int, seconds: float) -> None:
    await session.run_sync(_leave, run, n)
    await asyncio.sleep(seconds)


@jobs.task(retry=SOON, limits=_STEPS)
async def chain_awaited(session: AsyncSession, run: AsyncRunContext, n: int, seconds: float) -> None:
    await session.run_sync(follow.enqueue, n=n, seconds=seconds / 2)
    await session.run_sync(_leave, run, n)
    await asyncio.sleep(seconds)


@jobs.task(retry=SOON, timeout=0.5)
async def overrun_awaited(session: AsyncSession, run: AsyncRunContext, n: int, seconds: float) -> None:
    await session.run_sync(_leave, run, n)
    await asyncio.sleep(60.0 if run.attempt == 1 else min(seconds, 0.1))


STEPS = ("first", "second", "third")
"""The steps of each task that has steps and does not wait for signals."""


def _trace(run: RunContext, step: str) -> Trace:
    return Trace(job_id=run.job_id, step=step, value=uuid.uuid4().hex)


def _traced(session: Session, run: RunContext, step: str, seconds: float) -> str:
    trace = _trace(run, step)
    session.add(trace)
    session.flush()
    time.sleep(seconds)
    return trace.value


@jobs.task(retry=SOON)
def stepped(session: Session, run: RunContext, n: int, seconds: float) -> list[str]:
    """Run three steps with an effect each, and sleep in between. Some jobs raise an error after the first step."""
    values = [run.step("first", _traced, session, run, "first", seconds / 3)]
    _fail(run.attempt == 1 and n % 3 == 0)
    run.sleep("rest", seconds)
    values += [run.step(name, _traced, session, run, name, seconds / 3) for name in STEPS[1:]]
    session.add(_effect(run, n))
    return values


async def _traced_awaited(session: AsyncSession, run: AsyncRunContext, step: str, seconds: float) -> str:
    value = await session.run_sync(_traced, run, step, 0.0)
    await asyncio.sleep(seconds)
    return value


@jobs.task(retry=SOON, limits=_STEPS)
async def stepped_awaited(session: AsyncSession, run: AsyncRunContext, n: int, seconds: float) -> list[str]:
    values = [await run.step("first", _traced_awaited, session, run, "first", seconds / 3)]
    _fail(run.attempt == 1 and n % 3 == 0)
    await run.sleep("rest", seconds)
    values += [await run.step(name, _traced_awaited, session, run, name, seconds / 3) for name in STEPS[1:]]
    session.add(_effect(run, n))
    return values


def _traced_apart(run: RunContext, step: str, seconds: float) -> str:
    trace = _trace(run, step)
    value = trace.value
    _commit(trace, seconds)
    return value


@jobs.task(retry=SOON)
def stepped_apart(run: RunContext, n: int, seconds: float) -> list[str]:
    """Run steps in a task without a session. A step may be called again, and its first stored value counts."""
    values = [run.step(name, _traced_apart, run, name, seconds / 3) for name in STEPS[:2]]
    _fail(run.attempt == 1 and n % 3 == 0)
    return [*values, run.step("third", _traced_apart, run, "third", seconds / 3)]


@jobs.task(retry=SOON)
def ask(session: Session, run: RunContext, n: int, seconds: float) -> list[int | None]:
    """Wait for a signal, run a step, and then wait for a second signal with a timeout."""
    first = run.wait_for("told", int, timeout=None)
    run.step("first", _traced, session, run, "first", seconds / 3)
    _fail(run.attempt == 1 and n % 3 == 0)
    second: int | None = None
    with suppress(SignalTimeout):
        second = run.wait_for("told", int, timeout=0.2 + seconds)
    session.add(_effect(run, n))
    return [first, second]


@jobs.task(retry=SOON, limits=ConcurrencyLimit(1, key=lambda arguments: arguments["n"] % 20))
async def ask_awaited(run: AsyncRunContext, n: int, seconds: float) -> list[int]:
    """Wait for two signals without a timeout, in the event loop and without a session."""
    return [await run.wait_for("told", int, timeout=None) for _ in range(2)]


@jobs.task(retry=SOON, max_attempts=3)
def hopeless(session: Session, run: RunContext, n: int, seconds: float) -> None:
    """Always fail, after leaving an effect."""
    _leave(session, run, n, seconds)
    _fail(True)


@jobs.task(max_attempts=2)
def poison(n: int, seconds: float) -> None:
    """End the whole process."""
    time.sleep(seconds)
    os._exit(POISONED)


@jobs.task(max_attempts=2)
def hang(n: int, seconds: float) -> None:
    """Block the whole process: call a C function that keeps the interpreter lock."""
    ctypes.PyDLL(None).sleep(int(seconds))


def _leave_thread() -> None:
    threading.Thread(target=time.sleep, args=(LEFT_FOR,)).start()


def _leave_executor() -> None:
    executor = ThreadPoolExecutor(1)
    executor.submit(time.sleep, LEFT_FOR)
    executor.shutdown(wait=False)


def _leave_fork(daemon: bool = False) -> None:
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(LEFT_FOR,), daemon=daemon).start()


def _leave_program() -> None:
    """Without `Popen`, which waits until processes that are forked meanwhile have closed its pipe."""
    os.posix_spawn(sys.executable, [sys.executable, "-c", f"import time; time.sleep({LEFT_FOR})"], os.environ)


def _leave_file() -> None:
    os.open(os.devnull, os.O_RDONLY)


_LEFT = (_leave_thread, _leave_executor, _leave_fork, partial(_leave_fork, daemon=True), _leave_program, _leave_file)


@jobs.task(retry=SOON)
def litter(run: RunContext, n: int, seconds: float) -> None:
    """Leave something behind that outlives the job, and would outlive the worker's end."""
    _commit(_effect(run, n), seconds)
    _LEFT[n % len(_LEFT)]()


CHAINS = {"chain", "chain_awaited"}
TRACED = {"stepped", "stepped_awaited", "ask"}
"""Tasks that leave a trace of each call of a step, in the step's own transaction."""
TRACED_APART, ASKING = {"stepped_apart"}, {"ask", "ask_awaited"}
TRANSACTIONAL = CHAINS | TRACED | {"write", "write_awaited", "both", "follow", "snooze", "flaky", "hopeless"}
TRANSACTIONAL |= {"overrun", "overrun_awaited"}
ORDERED, PLAIN = {"flaky"}, {"mark", "once", "litter"}
STOPPING = {"poison", "hang"}
"""Tasks that take down their process, and so all other jobs in it."""
