"""The cost of observing workers: drains with Prometheus metrics, and without.

Run as a program, this is the worker process of `benchmarks.work`, with metrics that are scraped.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from functools import partial

from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import Engine, create_engine

from benchmarks import work
from benchmarks.report import Figure
from benchmarks.speed import claims, done, drain, fill, in_turn
from sqla_jobs.prometheus import collector

PROGRAM = "benchmarks.observed"
_SCRAPE = 1.0
"""Seconds between two scrapes. Prometheus itself waits at least 15 seconds."""


def measure(engine: Engine, count: int, repetitions: int) -> Iterator[Figure]:
    for name, task, number in (("plain", work.nothing, count), ("transactional", work.write, count // 5)):
        observed, without = in_turn(
            repetitions,
            partial(drain, engine, number, task=task, program=PROGRAM),
            partial(drain, engine, number, task=task),
        )
        yield Figure("drain, observed", f"{name}, with Prometheus, beside none", "jobs/s", observed, without)
    observed, without = in_turn(repetitions, partial(_cpu, engine, count, PROGRAM), partial(_cpu, engine, count))
    yield Figure("drain, observed", "CPU of the worker, plain", "µs/job", observed, without, less_is_better=True)


def _cpu(engine: Engine, count: int, program: str = work.PROGRAM) -> float:
    """Return the worker's CPU time for each plain job, in microseconds."""
    work.empty(engine)
    with work.workers(engine, program=program) as (worker,):
        fill(engine, count)
        work.settle(engine)
        before = claims(engine)
        worker.go()
        used, _ = worker.usage()
        done(engine, count, claims_before=before)
        return 1e6 * (worker.usage()[0] - used) / count


def _scrape(registry: CollectorRegistry) -> None:
    while True:
        generate_latest(registry)
        time.sleep(_SCRAPE)


def main() -> None:
    registry = CollectorRegistry()
    work.jobs.bind(create_engine(sys.argv[1]))
    registry.register(collector(work.jobs))
    threading.Thread(target=_scrape, args=(registry,), daemon=True).start()
    work.main()


if __name__ == "__main__":
    main()
