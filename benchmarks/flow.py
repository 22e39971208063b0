"""Measures the cost of limits: for plain jobs, for limited jobs, and for a worker that may not start a waiting job."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from benchmarks import claims, cost, limited, small_batches, speed, work
from benchmarks.limited import KEYED, block
from benchmarks.report import Figure
from benchmarks.speed import drain, fill, in_turn
from benchmarks.work import MARKS, jobs, workers

_WAITING, _KEYS = 30_000, 1000
_THREADS = 10
_TURNS = 200
_RUNS, _ENDS = 10_000, 300
_SECONDS = 6
"""Seconds for which starts behind a rate are measured."""
_IDLE = 12.0

wait_beside = partial(block, count=_WAITING, keys=_KEYS)


def measure(engine: Engine, count: int, repetitions: int) -> Iterator[Figure]:
    """Measure everything, in about three minutes."""
    yield from _plain(engine, count, repetitions)
    yield from _throughput(engine, max(count // 4, *KEYED))
    yield from _in_front(engine, count // 8)
    yield from _claims(engine)
    yield from _hand_over(engine)
    yield from _rates(engine)
    yield _idle(engine)


def _plain(engine: Engine, count: int, repetitions: int) -> Iterator[Figure]:
    """Measure plain jobs beside many limited jobs that wait, and plain jobs alone.

    Beside limited jobs, the worker knows the tasks of those jobs.
    """
    section = f"plain jobs beside {_WAITING:,} behind limits"

    def enqueue(run: Callable[[Engine, int], float], number: int, beside: Callable[[Engine], None]) -> float:
        work.empty(engine)
        beside(engine)
        return run(engine, number)

    for name, run, number in (("one by one", speed.one_by_one, count // 20), ("enqueue_many", fill, count)):
        ours, without = in_turn(
            repetitions,
            partial(enqueue, run, number, wait_beside),
            partial(enqueue, run, number, speed.nowhere),
        )
        yield Figure(section, f"enqueue, {name}", "jobs/s", ours, without)
    ours, without = in_turn(
        repetitions,
        lambda: drain(engine, count, program=limited.PROGRAM, beside=wait_beside),
        lambda: drain(engine, count),
    )
    yield Figure(section, "drain", "jobs/s", ours, without)
    (waits, _), (waits_without, _) = (
        speed.pick_up(engine, program=limited.PROGRAM, beside=wait_beside),
        speed.pick_up(engine),
    )
    for label, at in (("p50", 0.5), ("p95", 0.95)):
        mine, theirs = (times[int(at * len(times))] for times in (waits, waits_without))
        yield Figure(section, f"pick-up from before the enqueue, {label}", "ms", mine, theirs, less_is_better=True)


def _throughput(engine: Engine, count: int) -> Iterator[Figure]:
    """Measure jobs whose gates are never full, and plain jobs in claims of the same size. The jobs do nothing."""
    for processes in (1, 8):
        plain = drain(engine, count, processes=processes, concurrency=_THREADS, program=small_batches.PROGRAM)
        for keys, task in KEYED.items():
            ours = drain(
                engine,
                count,
                processes=processes,
                concurrency=_THREADS,
                task=task,
                program=limited.PROGRAM,
            )
            section = f"behind limits, beside plain ones by {small_batches.BATCH}"
            workers_of = f"{processes} worker{'s' * (processes > 1)} of {_THREADS}"
            yield Figure(section, f"{workers_of}, {keys:,} key{'s' * (keys > 1)}", "jobs/s", ours, plain)


def _in_front(engine: Engine, count: int) -> Iterator[Figure]:
    """Measure limited jobs, with blocked jobs of other limits in front of them, and without those."""

    def run(beside: Callable[[Engine], None]) -> float:
        task = KEYED[1000]
        return drain(engine, count, concurrency=_THREADS, task=task, program=limited.PROGRAM, beside=beside)

    one, many, without = in_turn(
        2, lambda: run(partial(block, count=10_000, keys=1)), lambda: run(wait_beside), lambda: run(speed.nowhere)
    )
    for name, ours in (
        ("behind 10,000 jobs of one blocked key", one),
        (f"behind {_WAITING:,} of {_KEYS:,} blocked keys", many),
    ):
        yield Figure("jobs behind other limits", name, "jobs/s", ours, without)


def _claims(engine: Engine) -> Iterator[Figure]:
    section = "claims of 10, the server's time"
    work.empty(engine)
    claims.fill(engine, work.nothing, 4000)
    claims.fill(engine, KEYED[1000], 4000)
    ours, plain = claims.server_time(engine)
    yield Figure(section, "behind limits of 1,000 keys, beside plain", "ms", ours, plain, less_is_better=True)
    work.empty(engine)
    claims.fill(engine, KEYED[1], _RUNS)
    last, first = claims.under_a_held_snapshot(engine, _RUNS, _ENDS)
    name = f"held snapshot: last {_ENDS} of {_RUNS // 10:,}, beside first"
    yield Figure(section, name, "ms", last, first, less_is_better=True)


def _hand_over(engine: Engine) -> Iterator[Figure]:
    """Measure the time from the end of a job to the start of the next job of its key. The worker is otherwise idle."""
    work.empty(engine)
    with (
        tempfile.NamedTemporaryFile() as file,
        workers(engine, concurrency=_THREADS, program=limited.PROGRAM) as (worker,),
        Session(engine) as session,
    ):
        limited.turn.enqueue_many(session, ({"i": i, "path": file.name} for i in range(_TURNS)))
        session.commit()
        before = speed.claims(engine)
        worker.go()
        speed.done(engine, _TURNS, claims_before=before)
        moments = sorted(at for _, at in MARKS.iter_unpack(Path(file.name).read_bytes()))
    waits = sorted(1000 * (began - ended) for ended, began in zip(moments[1::2], moments[2::2], strict=False))
    for label, at in (("p50", 0.5), ("p95", 0.95)):
        yield Figure("behind limits", f"hand-over, {label}", "ms", waits[int(at * len(waits))])


def _rates(engine: Engine) -> Iterator[Figure]:
    """Measure the starts per second after the first burst, compared with the rate that is allowed."""
    section = "starts of a rate, beside those allowed"
    for name, task, rate, keys in (
        (f"{limited.RATE} a second, of as many keys as jobs", limited.rated, limited.RATE, 1),
        (
            f"{limited.RATED_KEYS} keys, {limited.RATE_OF_KEY} a second each",
            limited.rated_by_key,
            limited.RATE_OF_KEY,
            limited.RATED_KEYS,
        ),
    ):
        yield Figure(section, name, "starts/s", *_used(engine, task, rate, keys))


def _used(engine: Engine, task: Any, rate: int, keys: int) -> tuple[float, float]:
    count = rate * keys * (_SECONDS + 1)
    work.empty(engine)
    with workers(engine, concurrency=_THREADS, program=limited.PROGRAM) as (worker,):
        fill(engine, count, task)
        before = speed.claims(engine)
        worker.go()
        speed.done(engine, count, claims_before=before)
    at = func.extract("epoch", jobs.Job.started_at)
    key = jobs.Job.args["i"].as_integer() % keys
    with Session(engine) as session:
        took = session.scalars(select(func.max(at) - func.min(at)).group_by(key)).all()
    seconds = sum(map(float, took)) / keys
    return (count - rate * keys) / seconds, rate * keys


def _idle(engine: Engine) -> Figure:
    """Count the transactions of a worker that may not start any of the waiting jobs."""
    work.empty(engine)
    with workers(engine, concurrency=_THREADS, program=limited.PROGRAM) as (worker,):
        wait_beside(engine)
        work.settle(engine)  # otherwise, autovacuum's transactions would count
        worker.go()
        time.sleep(12)  # by then, the server has counted the transactions of the worker's start
        before = cost.read(engine)
        time.sleep(_IDLE)
        after = cost.read(engine)
    transactions = (after.transactions - before.transactions) / (_IDLE + 1.5)
    return Figure("behind limits", f"statements, idle beside {_KEYS:,} blocked keys", "per second", transactions)
