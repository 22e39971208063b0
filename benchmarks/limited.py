"""Tasks behind limits. Run as a program, this is the worker process of `benchmarks.work` with these tasks declared."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, delete, text
from sqlalchemy.orm import Session

from benchmarks import work
from benchmarks.work import MARKS, SCHEMA, jobs
from sqla_jobs import ConcurrencyLimit, RateLimit

PROGRAM = "benchmarks.limited"
RATE, RATE_OF_KEY = 50, 5
RATED_KEYS = 20
_OPEN = 1000
"""The limit of running jobs for each key. It exceeds the jobs that a worker has claimed or still has to store."""


def keyed(keys: int) -> Any:
    """Declare a limited task with this number of keys. The limit of a key is never full."""

    def key(arguments: Mapping[str, Any]) -> int:
        return int(arguments["i"]) % keys

    def task(i: int) -> None: ...

    return jobs.task(name=f"keyed_{keys}", limits=ConcurrencyLimit(_OPEN, key=key))(task)


KEYED = {keys: keyed(keys) for keys in (1, 1000, 10_000)}


@jobs.task(limits=ConcurrencyLimit(1, key="key"))
def blocked(i: int, key: int) -> None: ...


@jobs.task(limits=ConcurrencyLimit(1, key="path"))
def turn(i: int, path: str) -> None:
    """Record in a file when this job began and when it ended."""
    began = time.monotonic()
    with Path(path).open("ab") as file:
        file.write(MARKS.pack(2 * i, began))
        file.flush()
        file.write(MARKS.pack(2 * i + 1, time.monotonic()))


@jobs.task(limits=[RateLimit(RATE, per=1.0), ConcurrencyLimit(_OPEN, key="i")])
def rated(i: int) -> None: ...


def _rated_key(arguments: Mapping[str, Any]) -> int:
    return int(arguments["i"]) % RATED_KEYS


@jobs.task(limits=RateLimit(RATE_OF_KEY, per=1.0, key=_rated_key))
def rated_by_key(i: int) -> None: ...


def block(engine: Engine, count: int, keys: int) -> None:
    """Enqueue `count` jobs that wait for running jobs of their keys. The process of these is alive for an hour."""
    with Session(engine) as session:
        session.execute(delete(jobs.Process).where(jobs.Process.kind == "benchmark"))
        holder = jobs.Process(kind="benchmark", lease=3600)
        session.add(holder)
        session.flush()
        blocked.enqueue_many(session, ({"i": i, "key": i % keys} for i in range(count + keys)))
        session.flush()
        first = "state = 'running', attempt = 1, started_at = now(), process_id = :holder"
        session.execute(
            text(
                f"UPDATE {SCHEMA}.sqla_jobs SET {first}, current_run_id = nextval('{SCHEMA}.sqla_runs_id_seq') "
                "WHERE task = 'blocked' AND (args->>'i')::int < :keys"
            ),
            {"holder": holder.id, "keys": keys},
        )
        session.commit()


if __name__ == "__main__":
    work.main()
