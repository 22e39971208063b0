"""The benchmarks' tasks, and a worker process: `python -m benchmarks.work URL [CONCURRENCY [QUEUE ...]]`.

The process prints "ready", and begins to work when it reads "go". Then it answers each line "usage".
"""

from __future__ import annotations

import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_jobs import Jobs
from sqla_jobs.postgres import local_postgres

SCHEMA = "sqla_jobs_benchmark"
PROGRAM = "benchmarks.work"
MARKS = struct.Struct("qd")
_PATIENCE = 60.0


class Base(DeclarativeBase): ...


class Effect(Base):
    __tablename__ = "effects"
    __table_args__ = ({"schema": SCHEMA},)
    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int]


jobs = Jobs(Base, schema=SCHEMA)


@jobs.task
def nothing(i: int) -> None: ...


@jobs.task
def carry(i: int, ballast: str) -> None: ...


@jobs.task
def write(session: Session, i: int) -> None:
    session.add(Effect(n=i))


@jobs.task
def mark(i: int, path: str) -> None:
    """Record in a file when this job began, by a clock that all processes share."""
    began = time.monotonic()
    with Path(path).open("ab") as file:
        file.write(MARKS.pack(i, began))


@contextmanager
def database() -> Generator[Engine]:
    """Create the tables in their own schema, which is dropped at the end.

    The server is the one that DATABASE_URL names, or else a new durable PostgreSQL server.
    """
    if url := os.environ.get("DATABASE_URL"):
        with _schema(url) as engine:
            yield engine
    else:
        with local_postgres(durable=True) as url, _schema(url) as engine:
            yield engine


@contextmanager
def _schema(url: str) -> Generator[Engine]:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), pool_size=20)
    with engine.begin() as connection:
        connection.execute(text(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))
        connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
    try:
        Base.metadata.create_all(engine)
        yield engine
    finally:
        with engine.begin() as connection:
            connection.execute(text(f"DROP SCHEMA {SCHEMA} CASCADE"))
        engine.dispose()


def settle(engine: Engine) -> None:
    """Do now what autovacuum would do within a minute. If permitted, also do what the next checkpoint would do."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
        with suppress(ProgrammingError):
            connection.execute(text("CHECKPOINT"))


def empty(engine: Engine) -> None:
    with engine.begin() as connection:
        tables = (f"{SCHEMA}.sqla_{name}" for name in ("jobs", "runs", "limits", "starts"))
        connection.execute(text(f"TRUNCATE {', '.join(tables)} CASCADE"))
    settle(engine)


def fill_with_ballast(engine: Engine, count: int, size: int) -> None:
    """Enqueue jobs whose arguments have this number of bytes, which cannot be compressed."""
    with Session(engine) as session:
        carry.enqueue_many(session, ({"i": i, "ballast": os.urandom(size // 2).hex()} for i in range(count)))
        session.commit()


class Worker:
    """A worker in its own process, which has imported everything and waits for `go()`."""

    def __init__(self, engine: Engine, concurrency: int, queues: Sequence[str], program: str) -> None:
        url = engine.url.render_as_string(hide_password=False)
        command = [sys.executable, "-m", program, url, str(concurrency), *queues]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._ask("") == "ready"

    def _ask(self, question: str) -> str:
        said, heard = self._pipes
        if question:
            said.write(question + "\n")
            said.flush()
        return heard.readline().strip()

    @property
    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def go(self) -> None:
        assert self._ask("go") == "goes"

    def usage(self) -> tuple[float, float]:
        """Return the CPU seconds so far, and the resident memory in MB."""
        cpu, memory = self._ask("usage").split()
        return float(cpu), float(memory)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(_PATIENCE)
        for pipe in self._pipes:
            pipe.close()


@contextmanager
def workers(
    engine: Engine,
    count: int = 1,
    *,
    concurrency: int = 8,
    queues: Sequence[str] = ("default",),
    program: str = PROGRAM,
) -> Generator[list[Worker]]:
    """Start this number of workers, which wait for `go()`, and yield them."""
    found = [Worker(engine, concurrency, queues, program) for _ in range(count)]
    try:
        yield found
    finally:
        for worker in found:
            worker.stop()


def main() -> None:
    url, concurrency, *queues = sys.argv[1:]
    worker = jobs.worker(dict.fromkeys(queues, int(concurrency)), bind=create_engine(url, pool_size=int(concurrency)))
    print("ready", flush=True)
    sys.stdin.readline()
    threading.Thread(target=_answer, daemon=True).start()
    print("goes", flush=True)
    worker.run()


def _answer() -> None:
    for _ in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        print(used.ru_utime + used.ru_stime, pages * resource.getpagesize() / 1e6, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)  # the process that started this one has ended


if __name__ == "__main__":
    main()
