"""Measures how long a migration makes writers wait: `python -m benchmarks.migration`.

A database has the previous version's tables, with many jobs and runs. Writers insert jobs, some with a unique key, and
change the state of jobs. They write one row in each transaction, as fast as they can. They run alone for a while, then
during the upgrade, and then during the downgrade. What counts is the longest transaction. The longest one of the
writers alone shows the noise of the machine.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple, Self

import click
import psycopg
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import create_engine, text
from sqlalchemy.orm import registry

from sqla_jobs import Jobs
from sqla_jobs.migrations import LATEST, downgrade, upgrade
from sqla_jobs.migrations.applying import migrate
from sqla_jobs.postgres import local_postgres

FILL = (
    """
    INSERT INTO sqla_jobs (task, args, state, attempt, unique_key, run_at, started_at, finished_at)
    SELECT 'work', jsonb_build_object('n', n), s.state, CASE WHEN s.at IS NULL THEN 0 ELSE 1 END,
      CASE WHEN n % 10 = 0 THEN 'key ' || n END,
      now() + CASE WHEN s.state = 'scheduled' THEN interval '1 d' ELSE '0' END,
      s.at, s.at
    FROM generate_series(1, CAST(:jobs AS integer)) AS n, LATERAL (
      SELECT CASE n % 20 WHEN 0 THEN 'scheduled' WHEN 1 THEN 'queued' ELSE 'succeeded' END AS state,
        CASE WHEN n % 20 > 1 THEN now() - interval '1 d' END AS at) AS s
    """,
    """
    INSERT INTO sqla_runs (job_id, attempt, outcome, started_at, finished_at)
    SELECT id, 1, 'succeeded', started_at, finished_at FROM sqla_jobs WHERE state = 'succeeded'
    """,
    "VACUUM ANALYZE sqla_jobs, sqla_runs",
    "CHECKPOINT",
)
"""A twentieth of the jobs is queued, a twentieth is scheduled, and the others have ended, each with a run."""

WRITES = (
    "INSERT INTO sqla_jobs (task, args) VALUES ('work', '{}')",
    """
    INSERT INTO sqla_jobs (task, args, unique_key) VALUES ('work', '{}', 'of all')
    ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL AND state IN ('scheduled', 'queued', 'running') DO NOTHING
    """,
    """
    WITH one AS MATERIALIZED (
        SELECT id FROM sqla_jobs WHERE state = 'queued' ORDER BY position LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED)
    UPDATE sqla_jobs j SET state = 'running', attempt = 1, started_at = now(),
      current_run_id = j.id, process_id = gen_random_uuid()
    FROM one WHERE j.id = one.id
    """,
    """
    WITH one AS MATERIALIZED (
        SELECT id FROM sqla_jobs WHERE state = 'running' LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED), moved AS (
        UPDATE sqla_jobs j SET state = 'succeeded', finished_at = now(), current_run_id = NULL, process_id = NULL
        FROM one WHERE j.id = one.id RETURNING j.id)
    INSERT INTO sqla_runs (job_id, attempt, outcome) SELECT id, 1, 'succeeded' FROM moved
    """,
)


WAITS = """
    SELECT coalesce((SELECT max(regexp_replace(b.query, '\\s+', ' ', 'g')) FROM pg_stat_activity b
        WHERE b.pid = ANY (pg_blocking_pids(l.pid))), '?'), extract(epoch FROM clock_timestamp() - l.waitstart)
    FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE NOT l.granted AND l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.waitstart IS NOT NULL
      AND a.query ~ '^(INSERT|WITH)'
"""


class Writer:
    """Executes one statement repeatedly, each time in its own transaction, and records how long each takes."""

    def __init__(self, url: str, write: str) -> None:
        self._url, self._write = url.replace("+psycopg", ""), write
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop)
        self._took = list[float]()
        self.errors = list[str]()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def take(self) -> list[float]:
        """Return the duration in seconds of each transaction since the last call."""
        taken, self._took = self._took, []
        return taken

    def _loop(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._stop.wait(0.001):
                began = time.perf_counter()
                try:
                    connection.execute(self._write.encode())
                except psycopg.Error as error:
                    self.errors.append(str(error))
                self._took.append(time.perf_counter() - began)


class Lookout:
    """Watches how long writers wait for a lock on a table, and which statement holds it."""

    def __init__(self, url: str) -> None:
        self._url = url.replace("+psycopg", "")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop)
        self._waits = dict[str, float]()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def take(self) -> dict[str, float]:
        """Return the statements that blocked writers since the last call, each with its longest wait in seconds."""
        taken, self._waits = self._waits, {}
        return taken

    def _loop(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._stop.wait(0.002):
                for statement, seconds in connection.execute(WAITS).fetchall():
                    self._waits[statement] = max(self._waits.get(statement, 0.0), float(seconds))


class Measured(NamedTuple):
    """What the writers measured during one phase."""

    name: str
    seconds: float
    took: list[float]
    waits: dict[str, float]
    """The longest wait in seconds for each statement that blocked writers."""

    def __str__(self) -> str:
        per_thousand = statistics.quantiles(self.took, n=1000)
        return (
            f"{f'{self.name}:':<10} {self.seconds:>6.1f} s  {len(self.took):>8,} transactions  "
            f"median {1000 * per_thousand[499]:.1f} ms  99.9 % within {1000 * per_thousand[-1]:.0f} ms  "
            f"longest {1000 * max(self.took):.0f} ms  "
            f"longest wait for a lock {1000 * max(self.waits.values(), default=0.0):.0f} ms"
        )


def prepare(url: str, count: int) -> None:
    """Create the previous version's tables, with this number of jobs."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        upgrade(Operations(MigrationContext.configure(connection)), from_=0, to=LATEST - 1)
        for statement in FILL:
            connection.execute(text(statement), {"jobs": count} if ":jobs" in statement else None)
    engine.dispose()


def measure(url: str, seconds: float) -> Iterator[Measured]:
    """Measure the writers alone, during the upgrade, and during the downgrade."""
    doing: dict[str, Callable[[], object]] = {
        "alone": lambda: time.sleep(seconds),
        "upgrade": lambda: _run("up", url),
        "downgrade": lambda: _run("down", url),
    }
    with ExitStack() as stack:
        writers = [stack.enter_context(Writer(url, write)) for write in WRITES]
        lookout = stack.enter_context(Lookout(url))
        for name, do in doing.items():
            lookout.take()
            for writer in writers:
                writer.take()
            began = time.monotonic()
            do()
            took = time.monotonic() - began
            yield Measured(name, took, [took for writer in writers for took in writer.take()], lookout.take())
        if errors := [error for writer in writers for error in writer.errors]:
            raise click.ClickException(f"{len(errors)} transactions of writers failed, the first: {errors[0]}")


def _run(direction: str, url: str) -> None:
    """Upgrade or downgrade in another process. In this one, the work would hold up the writers' threads."""
    code = f"from benchmarks import migration; migration.{direction}({url!r})"
    subprocess.run([sys.executable, "-c", code], check=True)


def up(url: str) -> None:
    """Upgrade in the same way as `sqla-jobs migrate`."""
    engine = create_engine(url)
    migrate(engine, Jobs(registry()).models)
    engine.dispose()


def down(url: str) -> None:
    """Downgrade to the previous version."""
    engine = create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        with context.begin_transaction():
            downgrade(Operations(context), from_=LATEST, to=LATEST - 1)
    engine.dispose()


@click.command(context_settings={"show_default": True})
@click.option("--jobs", "count", default=1_000_000, help="Number of jobs in the tables.")
@click.option("--seconds", default=20.0, help="How long the writers write alone.")
@click.option("--shown", default=0, help="Number of blocking statements to show, those with the longest waits first.")
def main(count: int, seconds: float, shown: int) -> None:
    """Print how long the writers' transactions took."""
    with local_postgres(durable=True) as url:
        prepare(url, count)
        click.echo(f"Python {platform.python_version()}, version {LATEST - 1} to {LATEST}, {count:,} jobs")
        for measured in measure(url, seconds):
            click.echo(measured)
            for statement, seconds in sorted(measured.waits.items(), key=lambda wait: -wait[1])[:shown]:
                click.echo(f"  {1000 * seconds:>6.1f} ms  {statement:.200}")


if __name__ == "__main__":
    main()
