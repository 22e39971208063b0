"""How fast jobs are enqueued, picked up and completed."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from benchmarks import plain, work
from benchmarks.plain import Plain
from benchmarks.report import Figure
from benchmarks.work import MARKS, SCHEMA, jobs, workers

_PATIENCE = 120.0
_PICK_UPS = 100


def in_turn(repetitions: int, *runs: Callable[[], float]) -> list[float]:
    """Return the median of each run. The runs take turns, so other load on the machine affects all of them."""
    rounds = [[run() for run in runs] for _ in range(repetitions)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def fill(engine: Engine, count: int, task: Any = work.nothing) -> float:
    """Enqueue jobs with `enqueue_many` in one transaction. Return the jobs per second."""
    began = time.perf_counter()
    with Session(engine) as session:
        task.enqueue_many(session, ({"i": i} for i in range(count)))
        session.commit()
    return count / (time.perf_counter() - began)


def claims(engine: Engine) -> int:
    """Return the number of claimed jobs so far. Each claimed job takes a run id from a sequence."""
    with engine.connect() as connection:
        return connection.scalar(text(f"SELECT last_value - (NOT is_called)::int FROM {SCHEMA}.sqla_runs_id_seq")) or 0


def done(engine: Engine, count: int, *, claims_before: int) -> float:
    """Wait until all jobs have runs. Return the jobs per second since the first start, by the server's clock."""
    run = jobs.Run
    ran = select(func.count(), func.clock_timestamp() - func.min(run.started_at)).where(run.id > claims_before)
    deadline = time.monotonic() + _PATIENCE
    number, took = 0, timedelta()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while number < count:
            assert time.monotonic() < deadline, "the jobs are not done"
            time.sleep(0.02)
            if claims(engine) >= claims_before + count:
                number, took = connection.execute(ran).one()
    assert number == count, f"{number} runs of {count} jobs"
    return count / took.total_seconds()


def nowhere(engine: Engine) -> None:
    """Add nothing beside the measured jobs."""


def drain(
    engine: Engine,
    count: int,
    *,
    processes: int = 1,
    concurrency: int = 8,
    task: Any = work.nothing,
    program: str = work.PROGRAM,
    beside: Callable[[Engine], None] = nowhere,
) -> float:
    """Drain jobs that were added before the workers begin, after the jobs of `beside`. Return the jobs per second."""
    work.empty(engine)
    with workers(engine, processes, concurrency=concurrency, program=program) as started:
        beside(engine)
        fill(engine, count, task)
        work.settle(engine)
        before = claims(engine)
        for worker in started:
            worker.go()
        return done(engine, count, claims_before=before)


def one_by_one(engine: Engine, count: int) -> float:
    """Enqueue and commit jobs one by one. Return the jobs per second."""
    with Session(engine) as session:

        def step(i: int) -> None:
            work.nothing.enqueue(session, i=i)
            session.commit()

        return plain.rate(count, step)


def pick_up(
    engine: Engine, *, program: str = work.PROGRAM, beside: Callable[[Engine], None] = nowhere
) -> tuple[list[float], list[float]]:
    """Return the milliseconds until an idle worker begins a job, from the job's enqueue and from its commit."""
    work.empty(engine)
    with (
        tempfile.NamedTemporaryFile() as file,
        workers(engine, program=program) as (worker,),
        Session(engine) as session,
    ):
        beside(engine)
        worker.go()
        time.sleep(1)
        said = list[tuple[float, float]]()
        for i in range(_PICK_UPS):
            time.sleep(0.02 + (i % 7) * 0.005)
            began = time.monotonic()
            work.mark.enqueue(session, i=i, path=file.name)
            session.commit()
            said.append((began, time.monotonic()))
        deadline = time.monotonic() + 10
        while Path(file.name).stat().st_size < _PICK_UPS * MARKS.size and time.monotonic() < deadline:
            time.sleep(0.01)
        started = dict(MARKS.iter_unpack(Path(file.name).read_bytes()))
    waits = sorted(1000 * (started[i] - began) for i, (began, _) in enumerate(said))
    return waits, sorted(1000 * (started[i] - committed) for i, (_, committed) in enumerate(said))


def measure(engine: Engine, count: int, repetitions: int) -> Iterator[Figure]:
    by_hand = Plain(engine)

    def refilled(run: Callable[[], float]) -> Callable[[], float]:
        def again() -> float:
            work.empty(engine)
            by_hand.empty()
            return run()

        return again

    def plain_drain() -> float:
        by_hand.enqueue_many(count)
        work.settle(engine)
        return by_hand.drain()

    singles, transactional = count // 15, count // 5
    ours, inserted, added = in_turn(
        repetitions,
        refilled(lambda: one_by_one(engine, singles)),
        refilled(lambda: plain.insert_rows(engine, singles)),
        refilled(lambda: plain.add_objects(engine, singles)),
    )
    yield Figure("enqueue", "one by one, beside insert()", "jobs/s", ours, inserted)
    yield Figure("enqueue", "one by one, beside session.add()", "jobs/s", ours, added)
    ours, beside = in_turn(
        repetitions,
        refilled(lambda: plain.at_once(engine, singles, one_by_one)),
        refilled(lambda: plain.at_once(engine, singles, plain.add_objects)),
    )
    yield Figure("enqueue", "by 8 threads, beside session.add()", "jobs/s", ours, beside)
    ours, beside = in_turn(
        repetitions, refilled(lambda: fill(engine, count)), refilled(lambda: by_hand.enqueue_many(count))
    )
    yield Figure("enqueue", "enqueue_many, beside psycopg", "jobs/s", ours, beside)
    one, two, beside = in_turn(
        repetitions,
        lambda: drain(engine, count),
        lambda: drain(engine, count, processes=2),
        refilled(plain_drain),
    )
    yield Figure("drain", "one process, beside psycopg", "jobs/s", one, beside)
    yield Figure("drain", "two processes, beside psycopg", "jobs/s", two, beside)
    ours, beside = in_turn(
        repetitions,
        lambda: drain(engine, transactional, task=work.write),
        refilled(lambda: plain.at_once(engine, transactional, plain.add_effects)),
    )
    yield Figure("drain", "transactional, beside 8 threads of sessions", "jobs/s", ours, beside)

    work.empty(engine)
    ours_waits, plain_waits = pick_up(engine), by_hand.pick_up(_PICK_UPS)
    for name, which in (("from before the enqueue", 0), ("from after the commit", 1)):
        for label, at in (("p50", 0.5), ("p95", 0.95)):
            mine, theirs = (waits[which][int(_PICK_UPS * at)] for waits in (ours_waits, plain_waits))
            yield Figure("pick-up", f"{name}, {label}, beside psycopg", "ms", mine, theirs, less_is_better=True)
    by_hand.close()
