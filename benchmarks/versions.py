"""Programs of `benchmarks.portable` with the library of some folder of sources, on a database of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Engine, create_engine, text

from benchmarks import portable

ROOT = Path(__file__).parent.parent
KINDS = [kind for kind in portable.DECLARED if kind != "pick-up"]
_DATABASE = f"sqla_jobs_benchmark_{os.getpid()}"
_PATIENCE = 120.0


class Program:
    """One that waits for commands."""

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


class Pair:
    """A worker, which does not work yet, and a client, in processes of their own, on an empty database."""

    def __init__(self, worker: Program, client: Program, engine: Engine) -> None:
        self.worker = worker
        self.client = client
        self._engine = engine

    def drain(self, count: int) -> float:
        """Enqueue so many, which an idle worker begins at once. Returns jobs a second, by the server's clock."""
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("TRUNCATE sqla_jobs, sqla_runs"))
            self.client.ask("fill", count)
            deadline = time.monotonic() + _PATIENCE
            ran = text("SELECT count(*), extract(epoch FROM clock_timestamp() - min(started_at)) FROM sqla_runs")
            while True:
                number, took = connection.execute(ran).one()
                if number == count:
                    return count / float(took)
                if time.monotonic() > deadline:
                    raise click.ClickException(f"{number} of {count} jobs are done after {_PATIENCE:g} s")
                time.sleep(0.01)


@contextmanager
def pair(server: Engine, kind: str, sources: Path = ROOT) -> Generator[Pair]:
    """With the library of these sources, whose tables are those that it creates."""
    with ExitStack() as stack:
        engine = stack.enter_context(_database(server))
        worker, client = (Program(sources, engine, kind) for _ in range(2))
        for program in (worker, client):
            stack.callback(program.stop)
        client.ask("create")
        yield Pair(worker, client, engine)


@contextmanager
def _database(server: Engine) -> Generator[Engine]:
    with server.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {_DATABASE}"))
        engine = create_engine(server.url.set(database=_DATABASE))
        try:
            yield engine
        finally:
            engine.dispose()
            connection.execute(text(f"DROP DATABASE {_DATABASE} WITH (FORCE)"))
