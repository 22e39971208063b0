"""A worker or a client that uses public names only, so that it runs with whichever version of the library is found.

`python -P benchmarks/portable.py URL KIND` answers each line of its input, which names a method of `Program` and gives
its numbers, with a line of JSON. It declares one task, that of its kind: a worker takes no steps for what it does not
know.
"""

from __future__ import annotations

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
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import sqla_jobs
from sqla_jobs import Jobs, JobsError

CONCURRENCY = 8
_KEYS = 1000
_OPEN = 1000
"""Jobs of a key at once: more than are claimed or wait to be stored."""


class Base(DeclarativeBase): ...


class Effect(Base):
    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int]


jobs = Jobs(Base)
_moments = dict[int, float]()
"""When each `mark` began; the clock is that of all processes."""


def nothing(i: int) -> None: ...


def mark(i: int) -> None:
    _moments[i] = time.monotonic()


def write(session: Session, i: int) -> None:
    session.add(Effect(n=i))


async def await_nothing(i: int) -> None: ...


def _key(arguments: Mapping[str, Any]) -> int:
    return int(arguments["i"]) % _KEYS


def _limited() -> Any:
    from sqla_jobs import ConcurrencyLimit

    return jobs.task(limits=ConcurrencyLimit(_OPEN, key=_key))(nothing)


DECLARED: dict[str, Callable[[], Any]] = {
    "plain": lambda: jobs.task(nothing),
    "transactional": lambda: jobs.task(write),
    "limited": _limited,
    "coroutine": lambda: jobs.task(await_nothing),
    "enqueue": lambda: jobs.task(nothing),
    "pick-up": lambda: jobs.task(mark),
}
"""The task of each kind."""


class Calls:
    """Counts calls of Python functions, and of those in C, in all threads that start from now on."""

    def __init__(self) -> None:
        self._python = list[defaultdict[CodeType, int]]()
        self._in_c = list[list[int]]()
        threading.setprofile(self._begin)

    def _begin(self, _frame: FrameType, _event: str, _of: Any) -> None:
        """Each thread counts for itself, because of two that add to the same number one is lost."""
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
        """How many so far, by file and function; those in C together as ""."""
        found = Counter({"": sum(number for (number,) in self._in_c)})
        for counts in self._python:
            for code, number in counts.copy().items():
                file = "/".join(Path(code.co_filename).parts[-2:])
                found[f"{file}:{code.co_qualname}"] += number
        return dict(found)


class Program:
    """Each public method is a command."""

    def __init__(self, url: str, kind: str) -> None:
        self._engine = create_engine(url, pool_size=CONCURRENCY)
        self._kind = kind
        self._task: Any = None
        self._go = threading.Event()
        self._calls: Calls | None = None

    def where(self) -> str:
        """The folder of the library."""
        return str(Path(sqla_jobs.__file__).parent)

    def declare(self) -> str | None:
        """Returns why this version cannot."""
        try:
            self._task = DECLARED[self._kind]()
        except (ImportError, JobsError) as error:
            return str(error).partition(" (")[0]
        return None

    def create(self) -> None:
        Base.metadata.create_all(self._engine)

    def work(self) -> None:
        self._go.set()

    def count_calls(self) -> None:
        """Of a worker that begins after this."""
        self._calls = Calls()

    def calls(self) -> dict[str, int]:
        assert self._calls is not None
        return self._calls.read()

    def usage(self) -> float:
        """Seconds of CPU so far."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    def begun(self) -> list[float]:
        """When the jobs of the last `spread_out` began."""
        return [_moments[i] for i in sorted(_moments)]

    def fill(self, count: int) -> None:
        """Enqueue so many in one transaction."""
        with Session(self._engine) as session:
            self._task.enqueue_many(session, ({"i": i} for i in range(count)))
            session.commit()

    def one_by_one(self, count: int) -> float:
        """Seconds of so many, each enqueued and committed by itself."""
        began = time.perf_counter()
        with Session(self._engine) as session:
            for i in range(count):
                self._task.enqueue(session, i=i)
                session.commit()
        return time.perf_counter() - began

    def forget(self) -> None:
        """What began so far."""
        _moments.clear()

    def spread_out(self, count: int) -> list[float]:
        """When each of so many was enqueued and committed, one after another with a worker idle in between."""
        moments = list[float]()
        with Session(self._engine) as session:
            for i in range(count):
                time.sleep(0.02 + (i % 7) * 0.005)
                moments.append(time.monotonic())
                self._task.enqueue(session, i=i)
                session.commit()
        return moments

    def run(self) -> None:
        """Work until SIGTERM, once told to."""
        self._go.wait()
        jobs.worker({"default": CONCURRENCY}, bind=self._engine).run()

    def answer(self) -> None:
        for line in sys.stdin:
            command, *numbers = line.split()
            print(json.dumps(getattr(self, command)(*map(int, numbers))), flush=True)
        os.kill(os.getpid(), signal.SIGTERM)  # whoever started this is gone


def main() -> None:
    _, url, kind = sys.argv
    program = Program(url, kind)
    threading.Thread(target=program.answer, daemon=True).start()
    program.run()


if __name__ == "__main__":
    main()
