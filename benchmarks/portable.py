"""A worker or a client that uses only public names, so that it runs with any version of the library.

`python -P benchmarks/portable.py URL KIND` reads commands, each the name of a method of `Program` and its numbers, and
answers with JSON, line by line. It declares the task of KIND alone, so that the worker spends no time on other tasks.
"""

from __future__ import annotations

import inspect
import json
import os
import resource
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import sqla_jobs
from sqla_jobs import Jobs, JobsError, RunContext

CONCURRENCY = 8
STEPS = 10
_OPEN = 1000
"""The limit of running jobs for each key. It exceeds the jobs that a worker has claimed or still has to store."""


class Base(DeclarativeBase): ...


class Effect(Base):
    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int]


jobs = Jobs(Base)
_moments = dict[int, float]()
"""When each `mark` began, by a clock that all processes share."""


def nothing(i: int) -> None: ...


def mark(i: int) -> None:
    _moments[i] = time.monotonic()


def write(session: Session, i: int) -> None:
    session.add(Effect(n=i))


async def await_nothing(i: int) -> None: ...


async def await_write(session: AsyncSession, i: int) -> None:
    session.add(Effect(n=i))


def step(run: RunContext, i: int) -> None:
    for number in range(STEPS):
        run.step(f"step {number}", str, i)


def carry(i: int, ballast: str) -> None: ...


def blocked(i: int) -> None: ...


def _limited(keys: int, task: Callable[[int], None] = nothing) -> Any:
    from sqla_jobs import ConcurrencyLimit

    def key(arguments: Mapping[str, Any]) -> int:
        return int(arguments["i"]) % keys

    return jobs.task(limits=ConcurrencyLimit(_OPEN, key=key))(task)


def _beside_blocked() -> Any:
    _limited(1000, blocked)
    return jobs.task(nothing)


DECLARED: dict[str, Callable[[], Any]] = {
    "plain": lambda: jobs.task(nothing),
    "transactional": lambda: jobs.task(write),
    "limited": lambda: _limited(1000),
    "coroutine": lambda: jobs.task(await_nothing),
    "enqueue": lambda: jobs.task(nothing),
    "pick-up": lambda: jobs.task(mark),
    "1 key": lambda: _limited(1),
    "10,000 keys": lambda: _limited(10_000),
    "beside blocked": _beside_blocked,
    "ballast": lambda: jobs.task(carry),
    "transactional coroutine": lambda: jobs.task(await_write),
    "after jobs": lambda: jobs.task(nothing),
    "after a batch": lambda: jobs.task(nothing),
    "steps": lambda: jobs.task(step),
}
"""The function that declares the task of each kind."""


class Calls:
    """Counts the calls to Python functions and to C functions, in all threads that start from now on."""

    def __init__(self) -> None:
        self._python = list[defaultdict[CodeType, int]]()
        self._in_c = list[list[int]]()
        threading.setprofile(self._begin)

    def _begin(self, _frame: FrameType, _event: str, _of: Any) -> None:
        """Set up counters for this thread only. If two threads added to the same number, calls would be lost."""
        python, in_c = defaultdict[CodeType, int](int), [0]
        self._python.append(python)
        self._in_c.append(in_c)

        def count(frame: FrameType, event: str, _of: Any) -> None:
            if event == "call":
                python[frame.f_code] += 1
            elif event == "c_call":
                in_c[0] += 1

        sys.setprofile(count)

    def read(self) -> dict[str, int]:
        """Return the number of calls so far, by file and function. The key "" has the calls to C functions."""
        found = Counter({"": sum(number for (number,) in self._in_c)})
        for counts in self._python:
            for code, number in counts.copy().items():
                file = "/".join(Path(code.co_filename).parts[-2:])
                found[f"{file}:{code.co_qualname}"] += number
        return dict(found)


class Program:
    """A program whose public methods are its commands."""

    def __init__(self, url: str, kind: str) -> None:
        self._engine = create_engine(url, pool_size=CONCURRENCY)
        self._kind = kind
        self._task: Any = None
        self._go = threading.Event()
        self._calls: Calls | None = None

    def where(self) -> str:
        """Return the folder of the library."""
        return str(Path(sqla_jobs.__file__).parent)

    def declare(self) -> str | None:
        """Declare the task. If this version of the library cannot do that, return the reason."""
        try:
            self._task = DECLARED[self._kind]()
        except (ImportError, JobsError) as error:
            return str(error).partition(" (")[0]
        return None

    def create(self) -> None:
        Base.metadata.create_all(self._engine)

    def work(self) -> None:
        self._go.set()

    def calls(self) -> dict[str, int]:
        """Return the calls so far that a worker makes. They are counted from the first such command on."""
        self._calls = self._calls or Calls()
        return self._calls.read()

    def usage(self) -> float:
        """Return the seconds of CPU time used so far."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    def memory(self) -> float:
        """Return the resident memory in MB."""
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

    def fill(self, count: int) -> None:
        """Enqueue this number of jobs in one transaction. Of some kinds, the last one waits for all others."""
        with Session(self._engine) as session:
            batch = jobs.batch(session) if self._kind == "after a batch" else None
            task = self._task if batch is None else self._task.options(batch=batch)
            task.enqueue_many(session, ({"i": i} for i in range(count - self._kind.startswith("after"))))
            if self._kind.startswith("after"):
                self._task.options(after=batch or session.query(jobs.Job).all()).enqueue(session, i=count)
            session.commit()

    def block(self, count: int) -> None:
        """Enqueue this number of limited jobs that may not start."""
        with Session(self._engine) as session:
            jobs.set_limit(session, "blocked", running=0)
            jobs.tasks["blocked"].enqueue_many(session, ({"i": i} for i in range(count)))
            session.commit()

    def one_by_one(self, count: int) -> float:
        """Enqueue this number of jobs, each in its own transaction. Return the seconds that this took."""
        began = time.perf_counter()
        with Session(self._engine) as session:
            for i in range(count):
                self._task.enqueue(session, i=i)
                session.commit()
        return time.perf_counter() - began

    def spread_out(self, count: int) -> list[tuple[float, float]]:
        """Enqueue jobs one by one, each on an idle worker. Return the moments before each and after its commit."""
        moments = list[tuple[float, float]]()
        with Session(self._engine) as session:
            for i in range(count):
                time.sleep(0.02 + (i % 7) * 0.005)
                before = time.monotonic()
                self._task.enqueue(session, i=i)
                session.commit()
                moments.append((before, time.monotonic()))
        return moments

    def begun(self) -> list[float]:
        """Return when the jobs of the last `spread_out` began."""
        return [_moments[i] for i in sorted(_moments)]

    def forget(self) -> None:
        _moments.clear()

    def run(self) -> None:
        """Wait for the command `work`, then run a worker until SIGTERM."""
        self._go.wait()
        has_clock = "clock" in inspect.signature(jobs.worker).parameters  # older commits run none here
        no_clock: Any = {"clock": False} if has_clock else {}
        jobs.worker({"default": CONCURRENCY}, bind=self._engine, **no_clock).run()

    def answer(self) -> None:
        for line in sys.stdin:
            command, *numbers = line.split()
            print(json.dumps(getattr(self, command)(*map(int, numbers))), flush=True)
        os.kill(os.getpid(), signal.SIGTERM)  # the process that started this one has ended


if __name__ == "__main__":
    program = Program(*sys.argv[1:])
    threading.Thread(target=program.answer, daemon=True).start()
    program.run()
