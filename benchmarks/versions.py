"""Runs programs of `benchmarks.portable` on their own database, with the library from any folder of sources."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import click
from sqlalchemy import Connection, Engine, create_engine, make_url, text

from benchmarks import portable
from sqla_jobs.postgres import local_postgres

ROOT = Path(__file__).parent.parent
KINDS = ("plain", "transactional", "limited", "coroutine")
_numbers = itertools.count()
_PATIENCE = 120.0
_CLAIMED = text("SELECT last_value - (NOT is_called)::int FROM sqla_runs_id_seq")
_RAN = text(
    "SELECT count(*), extract(epoch FROM clock_timestamp() - min(started_at)) FROM sqla_runs WHERE id > :claimed"
)


class Drain(NamedTuple):
    """Jobs per second by the server's clock, and the CPU time of worker and server for each job in microseconds."""

    rate: float
    cpu: float
    server: float


class Lacking(Exception):
    """A version of the library lacks this kind of task. The message is that version's own."""


class Program:
    """A process that waits for commands."""

    def __init__(self, sources: Path, engine: Engine, kind: str) -> None:
        url = engine.url.render_as_string(hide_password=False)
        self._process = subprocess.Popen(
            [sys.executable, "-P", portable.__file__, url, kind],
            env={**os.environ, "PYTHONPATH": str(sources)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        found = self.ask("where")
        assert found == str(sources / "sqla_jobs"), f"it runs with {found} instead of {sources}"

    def ask(self, command: str, *numbers: int) -> Any:
        said, heard = self._process.stdin, self._process.stdout
        assert said is not None
        assert heard is not None
        print(command, *numbers, file=said, flush=True)
        if answer := heard.readline():
            return json.loads(answer)
        raise click.ClickException(f"a program of the benchmark ended before its answer to {command!r}")

    def stop(self) -> None:
        with self._process:  # closes the pipes
            self._process.terminate()
            try:
                self._process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()


class Pair(NamedTuple):
    """A client and workers, in separate processes with an empty database. The workers have not started to work."""

    client: Program
    workers: list[Program]
    engine: Engine

    @property
    def worker(self) -> Program:
        return self.workers[0]

    def work(self) -> None:
        for worker in self.workers:
            worker.ask("work")

    def claimed(self) -> int:
        """Return the number of claimed jobs so far."""
        with self.engine.connect() as connection:
            return int(connection.execute(_CLAIMED).scalar_one())

    def wait(self, count: int) -> None:
        """Wait until this number of jobs is done, since the start."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            _wait(connection, 0, count)

    def drain(self, count: int, beside: Callable[[Pair], object] = lambda _: None) -> Drain:
        """Enqueue jobs in one transaction, after the rows of `beside`. The idle worker begins them at the commit."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("TRUNCATE sqla_jobs, sqla_runs CASCADE"))
            beside(self)
            claimed = connection.execute(_CLAIMED).scalar_one()
            used, used_by_server = self.worker.ask("usage"), _server_usage(connection)
            self.client.ask("fill", count)
            took = _wait(connection, claimed, count)
            now, by_server = self.worker.ask("usage"), _server_usage(connection)
            return Drain(count / took, 1e6 * (now - used) / count, 1e6 * (by_server - used_by_server) / count)

    def enqueue(self, count: int) -> tuple[float, float]:
        """Enqueue jobs one by one. Return the jobs per second, and the microseconds of the server for each job."""
        self.client.ask("one_by_one", 1)
        with self.engine.connect() as connection:
            used = _server_usage(connection)
            rate = count / float(self.client.ask("one_by_one", count))
            return rate, 1e6 * (_server_usage(connection) - used) / count

    def pick_ups(self, count: int) -> tuple[list[float], list[float]]:
        """Return the milliseconds until each job begins, in order: from before its enqueue, and from its commit."""
        self.worker.ask("forget")
        moments: list[tuple[float, float]] = self.client.ask("spread_out", count)
        deadline, begun = time.monotonic() + _PATIENCE, list[float]()
        while len(begun := self.worker.ask("begun")) < count:
            if time.monotonic() > deadline:
                raise click.ClickException(f"{len(begun)} of {count} jobs are picked up after {_PATIENCE:g} s")
            time.sleep(0.01)
        paired = [*zip(moments, begun, strict=True)]
        before, after = (sorted(1000 * (at - since[which]) for since, at in paired) for which in (0, 1))
        return before, after


def _wait(connection: Connection, claimed: int, count: int) -> float:
    """Wait for this number of jobs after the first `claimed` ones. Return the seconds since their first start."""
    deadline, number, took = time.monotonic() + _PATIENCE, 0, 0.0
    while number < count:
        if time.monotonic() > deadline:
            raise click.ClickException(f"{number} of {count} jobs are done after {_PATIENCE:g} s")
        time.sleep(0.01)
        if connection.execute(_CLAIMED).scalar_one() >= claimed + count:
            number, took = connection.execute(_RAN, {"claimed": claimed}).one()
    return float(took)


def _server_usage(connection: Connection) -> float:
    """Return the seconds of CPU time that this database's sessions have used. The server runs on this machine."""
    pids = connection.execute(text("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")).scalars()
    used = 0
    for pid in pids:
        with suppress(FileNotFoundError):  # this session has ended
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
            used += int(fields[11]) + int(fields[12])
    return used / os.sysconf("SC_CLK_TCK")


@contextmanager
def durable_server() -> Generator[Engine]:
    """Yield an engine of the server that DATABASE_URL names, or else of a new durable one."""
    with ExitStack() as stack:
        url = os.environ.get("DATABASE_URL") or stack.enter_context(local_postgres(durable=True))
        engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
        stack.callback(engine.dispose)
        yield engine


@contextmanager
def pair(server: Engine, kind: str, sources: Path = ROOT, *, workers: int = 1) -> Generator[Pair]:
    """Start a pair with the library from these sources. Raise `Lacking` if it does not know the kind of task."""
    with ExitStack() as stack:
        engine = stack.enter_context(database(server))
        programs = [Program(sources, engine, kind) for _ in range(1 + workers)]
        for program in programs:
            stack.callback(program.stop)
            if lacking := program.ask("declare"):
                raise Lacking(lacking)
        programs[0].ask("create")
        yield Pair(programs[0], programs[1:], engine)


@contextmanager
def database(server: Engine) -> Generator[Engine]:
    name = f"sqla_jobs_benchmark_{os.getpid()}_{next(_numbers)}"
    with server.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        engine = create_engine(server.url.set(database=name))
        try:
            yield engine
        finally:
            engine.dispose()
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
