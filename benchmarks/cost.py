"""What a worker costs: WAL, statements, CPU time and memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy import Engine, text

from benchmarks import work
from benchmarks.report import Figure
from benchmarks.speed import claims, done, fill
from benchmarks.work import Worker, workers

_IDLE = 20.0
_ROUNDS = 5


class Reading(NamedTuple):
    """Totals of the whole database so far: bytes of WAL, and committed transactions."""

    log: float
    transactions: float


def read(engine: Engine) -> Reading:
    """Pause, and then read the totals, since server processes report their counts about a second late.

    An idle server process may report only after ten seconds. Every process reports when it ends.
    """
    engine.dispose()
    time.sleep(1.5)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        found = connection.execute(
            text(
                "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn, "
                "(SELECT xact_commit FROM pg_stat_database WHERE datname = current_database())"
            )
        ).one()
    return Reading(float(found[0]), float(found[1]))


def cost(engine: Engine, jobs_in_all: int) -> Iterator[Figure]:
    work.empty(engine)
    with workers(engine) as (worker,):
        worker.go()
        yield from _idle(engine, worker)
    for size in (0, 1_500, 50_000):
        yield _log(engine, 2_000 if size else 20_000, size)
    yield from _long(engine, jobs_in_all)


def _idle(engine: Engine, worker: Worker) -> Iterator[Figure]:
    time.sleep(12)  # by then, the server has counted the transactions of the worker's start
    before, (cpu, _) = read(engine), worker.usage()
    time.sleep(_IDLE)
    (cpu_then, memory), after = worker.usage(), read(engine)
    seconds = _IDLE + 1.5
    yield Figure("cost", "idle: statements", "per second", (after.transactions - before.transactions) / seconds)
    yield Figure("cost", "idle: processor", "%", 100 * (cpu_then - cpu) / _IDLE)
    yield Figure("cost", "idle: resident memory", "MB", memory)


def _log(engine: Engine, count: int, size: int) -> Figure:
    """Return the bytes of WAL for a job: for its claim, its end and its run, including images of whole pages."""
    work.empty(engine)
    with workers(engine) as (worker,):
        if size:
            work.fill_with_ballast(engine, count, size)
        else:
            fill(engine, count)
        before, claimed = read(engine), claims(engine)
        worker.go()
        done(engine, count, claims_before=claimed)
        after = read(engine)
    what = f"arguments of {size:,} bytes" if size else "small arguments"
    return Figure("cost", f"log, {what}", "bytes/job", (after.log - before.log) / count)


def _long(engine: Engine, jobs_in_all: int) -> Iterator[Figure]:
    """Measure one worker that runs very many jobs."""
    each, memory, cpu = jobs_in_all // _ROUNDS, list[float](), 0.0
    work.empty(engine)
    with workers(engine) as (worker,):
        worker.go()
        before = read(engine)
        for _ in range(_ROUNDS):
            claimed = claims(engine)
            fill(engine, each)
            done(engine, each, claims_before=claimed)
            cpu, used = worker.usage()
            memory.append(used)
        after = read(engine)
    yield Figure("cost", "transactions", "per job", (after.transactions - before.transactions) / jobs_in_all)
    yield Figure("cost", "processor of the worker", "µs/job", 1e6 * cpu / jobs_in_all)
    yield Figure("cost", f"memory after {each:,} jobs", "MB", memory[0])
    yield Figure("cost", f"memory after {jobs_in_all:,} jobs", "MB", memory[-1])
