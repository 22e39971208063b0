"""An application for the tests of workers, in this process and in others."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from contextlib import suppress

from sqlalchemy import ForeignKey, Text, event, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tenacity import Retrying, wait_fixed

from sqla_jobs import Cancel, JobMixin, Jobs, Retry, RunContext, Snooze


class Base(DeclarativeBase):
    pass


class MyJob(JobMixin):
    note: Mapped[str | None] = mapped_column(Text)


jobs = Jobs(Base, job_class=MyJob)


class Effect(Base):
    """What a job did; a doubled one shows as two rows of one n."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int]
    kind: Mapped[str]
    job_id: Mapped[int | None] = mapped_column(ForeignKey(MyJob.id))


FAST = Retrying(wait=wait_fixed(0))
begun = threading.Event()
gate = threading.Event()
"""Closed until a test opens it; only for workers in this process."""


@jobs.task
def write(session: Session, n: int, seconds: float = 0.0) -> int:
    """A transactional effect."""
    session.add(Effect(n=n, kind="transactional"))
    session.flush()
    time.sleep(seconds)
    return n


@jobs.task
def commit_and_roll_back(session: Session, n: int) -> None:
    """A task that ends its transaction by itself, twice."""
    session.add(Effect(n=n, kind="kept"))
    session.commit()
    session.add(Effect(n=n + 1, kind="rolled back"))
    session.flush()
    session.rollback()


@jobs.task
def mark(n: int, seconds: float = 0.0) -> int:
    """A plain effect: committed on its own, and then the job goes on."""
    with jobs._binding().session_factory() as session:
        session.add(Effect(n=n, kind="plain"))
        session.commit()
    time.sleep(seconds)
    return n


@jobs.task(retention=86400)
def brief(n: int) -> int:
    return n


@jobs.task(retention=None)
def for_ever(n: int) -> int:
    return n


@jobs.task
def chain(session: Session, n: int) -> None:
    """An effect, and a job for the next one, in one commit."""
    session.add(Effect(n=n, kind="chain"))
    if n:
        chain.enqueue(session, n=n - 1)


@jobs.task
def wait(n: int) -> int:
    gate.wait(30)
    return n


@jobs.task
def write_and_wait(session: Session, n: int) -> None:
    begun.set()
    session.add(Effect(n=n, kind="transactional"))
    session.flush()
    gate.wait(30)


@jobs.task
def hold(session: Session, job_id: int) -> None:
    """Keeps the row of another job locked."""
    session.execute(select(MyJob.id).where(MyJob.id == job_id).with_for_update())
    begun.set()
    gate.wait(30)


@jobs.task(retry=FAST, max_attempts=3)
def flaky(run: RunContext, good_from: int) -> str:
    if run.attempt < good_from:
        raise ValueError(f"attempt {run.attempt} is too early")
    return f"attempt {run.attempt}"


@jobs.task(retry=Retrying(wait=wait_fixed(0.1)), max_attempts=6)
def good_at_last(run: RunContext, seconds: float) -> None:
    time.sleep(seconds)
    if run.attempt < run.max_attempts:
        raise ValueError(f"attempt {run.attempt} is too early")


@jobs.task(retry=Retrying(wait=wait_fixed(3600)))
def fails_slowly(message: str) -> None:
    raise ValueError(message)


@jobs.task(max_attempts=1)
def reports(run: RunContext, good: bool) -> None:
    run.progress(0.5)
    run.progress(1.0, "all of it")
    if not good:
        raise ValueError("and yet")


@jobs.task(max_attempts=1)
def reports_in_transaction(session: Session, run: RunContext, good: bool) -> None:
    reports(run, good)


@jobs.task
def reports_and_snoozes(run: RunContext) -> None:
    run.progress(0.25, "a quarter")
    raise Snooze(3600)


@jobs.task
def reports_in_transaction_and_snoozes(session: Session, run: RunContext) -> None:
    reports_and_snoozes(run)


@jobs.task(retry=FAST, max_attempts=2)
def write_and_fail(session: Session, n: int) -> None:
    session.add(Effect(n=n, kind="transactional"))
    raise RuntimeError("after the write")


@jobs.task
def snooze_once(session: Session, run: RunContext, n: int) -> None:
    session.add(Effect(n=n, kind="transactional"))
    session.flush()
    if not session.scalar(select(jobs.Run.id).where(jobs.Run.job_id == run.job_id)):
        raise Snooze(0)


@jobs.task(max_attempts=2)
def ask_again(session: Session, n: int, delay: float | None = None) -> None:
    session.add(Effect(n=n, kind="transactional"))
    session.flush()
    try:
        raise OSError("503")
    except OSError as error:
        raise Retry(delay, "the shop is closed") from error


@jobs.task
def give_up(session: Session, n: int) -> None:
    session.add(Effect(n=n, kind="transactional"))
    raise Cancel("not needed any more")


def _busy(seconds: float) -> None:
    """In Python code, where an interrupt arrives."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.005)


@jobs.task(timeout=0.2, retry=FAST, max_attempts=2)
def overrun(session: Session, n: int) -> None:
    session.add(Effect(n=n, kind="transactional"))
    session.flush()
    _busy(30)


@jobs.task
def endless(session: Session, run: RunContext, n: int) -> None:
    session.add(Effect(n=n, kind="transactional"))
    session.flush()
    run.progress(0.1)
    _busy(30)


@jobs.task
def cooperative(run: RunContext) -> str:
    while not run.cancel_requested:
        with suppress(BaseException):
            time.sleep(0.005)
    return "saw it"


@jobs.task
def report(run: RunContext) -> None:
    run.progress(0.5, "half way")
    gate.wait(30)


@jobs.task
def settings(session: Session) -> dict[str, str | None]:
    """What the server is told for the length of the transaction."""
    names = ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count")
    return {name: session.scalar(select(func.current_setting(name))) for name in names}


def _freeze(_: Session) -> None:
    os.killpg(0, signal.SIGSTOP)
    time.sleep(0.5)  # this thread may go on for a moment until the signal has reached it


@jobs.task
def freeze(session: Session, run: RunContext, n: int) -> None:
    """An effect; at the first attempt its process is frozen right before the COMMIT."""
    session.add(Effect(n=n, kind="transactional"))
    if run.attempt == 1:
        event.listen(session, "before_commit", _freeze)


@jobs.task(max_attempts=1)
def misbehave(how: str) -> object:
    """Each way in which a job can be hostile."""

    class Unprintable(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    def forever() -> None:
        forever()

    match how:
        case "exit":
            sys.exit(3)
        case "recursion":
            forever()
        case "unprintable":
            raise Unprintable
        case "nul":
            raise ValueError("a\x00b")
        case "euro":
            raise ValueError("12 \N{EURO SIGN}")
        case "result-euro":
            return "12 \N{EURO SIGN}"
        case "result-object":
            return object()
        case "result-nul":
            return "a\x00b"
        case "result-huge":
            return "x" * 2_000_000
        case "thread":
            threading.Thread(target=gate.wait, args=(30,), daemon=False).start()
        case "base-exception":
            raise GeneratorExit("directly")
        case _:
            raise NotImplementedError(how)
    return None


@jobs.task(timeout=0.3, retry=FAST, max_attempts=2)
def hold_the_gil() -> None:
    """Cannot be interrupted: C code that never comes back, and lets no other thread run."""
    ctypes.PyDLL(None).sleep(60)


@jobs.task
def hold_the_gil_for(seconds: int) -> None:
    ctypes.PyDLL(None).sleep(seconds)


@jobs.task
def sleep_in_c(seconds: int) -> None:
    """Other threads run, and nothing can interrupt it."""
    ctypes.CDLL(None).sleep(seconds)


@jobs.task
def hang(n: int) -> None:
    """An effect, and then C code that never comes back."""
    mark(n)
    ctypes.PyDLL(None).sleep(300)


@jobs.task(max_attempts=1)
def freeze_in_the_middle_of_a_message() -> None:
    """Its parent has the first half."""
    os.write(int(sys.argv[1]), (1000).to_bytes(4) + b"half")
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)  # the signal may reach another thread first: a return would be stored as a success


@jobs.task(max_attempts=2)
def die_by(how: str) -> None:
    if how == "segfault":
        ctypes.string_at(0)
    os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
