"""Measures whether claims stay fast while a snapshot is held, and with many other rows, queues and connections."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from benchmarks import work
from benchmarks.report import Figure
from benchmarks.speed import claims, done, drain, fill, in_turn
from benchmarks.work import SCHEMA, jobs, workers

_MILLION = 1_000_000
_IN_FRONT = 3000
"""The number of jobs that are kept waiting while a snapshot is held."""


def pinned(engine: Engine, *, processes: int, seconds: int, dead: int = 0) -> tuple[float, float]:
    """Return the jobs per second in the first and the last ten seconds, while a transaction holds a snapshot."""
    work.empty(engine)
    snapshot = create_engine(engine.url, isolation_level="REPEATABLE READ")
    with ExitStack() as stack:
        stack.callback(snapshot.dispose)
        started = stack.enter_context(workers(engine, processes))
        connection = stack.enter_context(snapshot.connect())
        connection.execute(text("SELECT 1 FROM pg_class LIMIT 1"))
        _leave_dead(engine, dead)
        for worker in started:
            worker.go()
        return _feed(engine, seconds)


def _leave_dead(engine: Engine, count: int) -> None:
    """Leave this number of dead rows that vacuum may not remove. The index for claims still has entries for them."""
    if count:
        fill(engine, count)
        _execute(engine, f"UPDATE {SCHEMA}.sqla_jobs SET state = 'cancelled', finished_at = now()")


def _feed(engine: Engine, seconds: int) -> tuple[float, float]:
    sent, series, began, before = 0, list[tuple[float, int]](), time.monotonic(), claims(engine)
    with Session(engine) as session:
        while (now := time.monotonic() - began) < seconds:
            claimed = claims(engine) - before
            series.append((now, claimed))
            if sent - claimed < _IN_FRONT:
                sent += work.nothing.enqueue_many(session, ({"i": i} for i in range(1000)))
                session.commit()
            else:
                time.sleep(0.01)
    return _rate(series, 0, 10), _rate(series, seconds - 10, seconds)


def _rate(series: list[tuple[float, int]], start: float, end: float) -> float:
    within = [point for point in series if start <= point[0] <= end]
    (first, ran), (last, ran_then) = within[0], within[-1]
    return (ran_then - ran) / (last - first)


_FINISHED = """WITH ended AS (INSERT INTO {jobs} (task, args, state, attempt, started_at, finished_at)
        SELECT 'nothing', '{{"i": 1}}', 'succeeded', 1, now(), now() FROM generate_series(1, {n}) RETURNING id)
    INSERT INTO {runs} (job_id, attempt, started_at, finished_at, outcome)
        SELECT id, 1, now(), now(), 'succeeded' FROM ended"""
_TOMORROW = """INSERT INTO {jobs} (task, args, state, run_at)
    SELECT 'nothing', '{{"i": 1}}', 'scheduled', now() + interval '1 day' FROM generate_series(1, {n})"""
_ELSEWHERE = """INSERT INTO {jobs} (task, args, state, queue)
    SELECT 'nothing', '{{"i": 1}}', 'queued', 'queue ' || n % 1000 FROM generate_series(1, 100000) n"""


def scale(engine: Engine, count: int, repetitions: int) -> Iterator[Figure]:
    """Measure the drain under each condition and without it, in turn."""
    conditions: dict[str, Callable[[], float]] = {
        "1,000,000 finished jobs": lambda: _beside(engine, count, _FINISHED),
        "1,000,000 jobs for tomorrow": lambda: _beside(engine, count, _TOMORROW),
        "100,000 jobs in 1,000 other queues": lambda: _beside(engine, count, _ELSEWHERE),
        "a worker of 100 queues": lambda: _many_queues(engine, count),
        "100 connections of other workers": lambda: _among_workers(engine, count),
        "statistics of 20 jobs": lambda: _unanalyzed(engine, 5 * count),
    }
    for name, run in conditions.items():
        ours, without = in_turn(repetitions, run, lambda: drain(engine, count))
        yield Figure("drain under a condition, beside one without", name, "jobs/s", ours, without)


def _beside(engine: Engine, count: int, rows: str) -> float:
    work.empty(engine)
    with workers(engine) as (worker,):
        with engine.begin() as connection:
            connection.execute(text(rows.format(jobs=f"{SCHEMA}.sqla_jobs", runs=f"{SCHEMA}.sqla_runs", n=_MILLION)))
        fill(engine, count)
        work.settle(engine)
        before = claims(engine)
        worker.go()
        return done(engine, count, claims_before=before)


def _many_queues(engine: Engine, count: int) -> float:
    names = [f"queue{n}" for n in range(100)]
    work.empty(engine)
    with workers(engine, concurrency=1, queues=names) as (worker,), Session(engine) as session:
        for name in names:
            args = [{"i": i} for i in range(count // len(names))]
            work.nothing.options(queue=name).enqueue_many(session, args)
        session.commit()
        work.settle(engine)
        before = claims(engine)
        worker.go()
        return done(engine, count, claims_before=before)


def _among_workers(engine: Engine, count: int) -> float:
    """Drain beside 28 idle workers. Each of these has three connections, and the worker that drains has up to nine."""
    with ExitStack() as stack:
        for _ in range(28):
            stack.enter_context(jobs.worker(["another"], concurrency=1, bind=engine))
        return drain(engine, count)


def _unanalyzed(engine: Engine, count: int) -> float:
    """Drain new tables without current statistics: first 20 jobs one by one, and then all others at once."""
    names = [f"{SCHEMA}.sqla_{name}" for name in ("jobs", "runs")]
    _execute(engine, *(f"DROP TABLE {name} CASCADE" for name in names))
    work.Base.metadata.create_all(engine)
    _execute(engine, *(f"ALTER TABLE {name} SET (autovacuum_enabled = off)" for name in names))
    with workers(engine) as (worker,), Session(engine) as session:
        worker.go()
        for _ in range(20):
            before = claims(engine)
            fill(engine, 1)
            done(engine, 1, claims_before=before)
        jobs.pause(session, "default")
        session.commit()
        fill(engine, count)
        before = claims(engine)
        jobs.resume(session, "default")
        session.commit()
        rate = done(engine, count, claims_before=before)
    _execute(engine, *(f"ALTER TABLE {name} RESET (autovacuum_enabled)" for name in names))
    return rate


def _execute(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def held(engine: Engine, seconds: int) -> Iterator[Figure]:
    """Compare the rate in the last ten seconds with that in the first ten, while a snapshot is held."""
    for name, processes, dead in (
        ("one worker", 1, 0),
        ("8 worker processes", 8, 0),
        ("1,000,000 dead rows before", 1, _MILLION),
    ):
        first, last = pinned(engine, processes=processes, seconds=seconds, dead=dead)
        yield Figure("held snapshot", name, "jobs/s", last, first)
