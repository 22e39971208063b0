"""Compares jobs that wait for other jobs with plain jobs, and steps with transactions by hand.

Run as a program, this is the worker process of `benchmarks.work`, with tasks of steps declared.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from benchmarks import plain, speed, work
from benchmarks.report import Figure
from benchmarks.speed import drain, in_turn
from benchmarks.work import MARKS, jobs, nothing, workers
from sqla_jobs import RunContext

PROGRAM = "benchmarks.workflows"
_WIDE, _TURNS = 10_000, 9
_LINKS = 1000
_STEPS, _STEPPED = 10, 300
_ENDED, _BEGUN = 0, 1


@jobs.task
def stepped(run: RunContext, i: int) -> None:
    for number in range(_STEPS):
        run.step(f"step {number}", str, i)


def measure(engine: Engine, repetitions: int) -> Iterator[Figure]:
    """Measure everything, in about two minutes."""
    yield from _fan_in(engine)
    links = [_chain(engine) for _ in range(repetitions)]
    yield Figure("jobs after others", f"a chain of {_LINKS:,}, a link", "ms", statistics.median(links))
    steps, transactions = in_turn(
        repetitions,
        lambda: _STEPS * drain(engine, _STEPPED, task=stepped, program=PROGRAM),
        lambda: plain.at_once(engine, _STEPS * _STEPPED, plain.add_effects),
    )
    yield Figure("steps of plain tasks", "beside 8 threads of sessions", "steps/s", steps, transactions)


@jobs.task
def pause(path: str) -> None:
    """Run after all other jobs, and record in a file when this job ends."""
    time.sleep(0.5)
    with Path(path).open("ab") as file:
        file.write(MARKS.pack(_ENDED, time.monotonic()))


def _fan_in(engine: Engine) -> Iterator[Figure]:
    """Measure the drain, and how soon the final job starts after the last of the jobs before it has ended."""
    names = {"after the jobs": _enqueue_after_jobs, "after their batch": _enqueue_after_batch}
    *rates, without = in_turn(
        _TURNS, *(partial(_drain, engine, enqueue) for enqueue in names.values()), partial(drain, engine, _WIDE)
    )
    for name, rate in zip(names, rates, strict=True):
        yield Figure(f"drain of {_WIDE:,} and one after them, beside plain jobs", name, "jobs/s", rate, without)
    gaps = in_turn(_TURNS, *(partial(_gap, engine, enqueue) for enqueue in names.values()))
    for name, gap in zip(names, gaps, strict=True):
        yield Figure("jobs after others", f"one {name} of {_WIDE:,}: last end to start, p50", "ms", gap)


def _enqueue_after_jobs(session: Session, path: str = "") -> int:
    """Enqueue many jobs, and a final job that waits for all of them. Return the number of jobs.

    With a path, another job pauses and so ends last before the final job. The file records the end of that job and the
    start of the final one.
    """
    nothing.enqueue_many(session, ({"i": i} for i in range(_WIDE)))
    if path:
        pause.options(priority=10).enqueue(session, path=path)
    before = session.scalars(select(jobs.Job)).all()
    work.mark.options(after=before).enqueue(session, i=_BEGUN, path=path or os.devnull)
    return len(before) + 1


def _enqueue_after_batch(session: Session, path: str = "") -> int:
    """Do the same as `_enqueue_after_jobs`, with a batch."""
    batch = jobs.batch(session)
    nothing.options(batch=batch).enqueue_many(session, ({"i": i} for i in range(_WIDE)))
    if path:
        pause.options(priority=10, batch=batch).enqueue(session, path=path)
    work.mark.options(after=batch).enqueue(session, i=_BEGUN, path=path or os.devnull)
    return _WIDE + bool(path) + 1


def _enqueue_chain(session: Session) -> int:
    link = nothing.enqueue(session, i=0)
    for i in range(1, _LINKS):
        link = nothing.options(after=link).enqueue(session, i=i)
    return _LINKS


def _drain(engine: Engine, enqueue: Callable[[Session], int]) -> float:
    """Drain the jobs that `enqueue` adds before the worker begins. Return the jobs per second."""
    work.empty(engine)
    with workers(engine, program=PROGRAM) as (worker,):
        with Session(engine) as session:
            count = enqueue(session)
            session.commit()
        work.settle(engine)
        before = speed.claims(engine)
        worker.go()
        return speed.done(engine, count, claims_before=before)


def _chain(engine: Engine) -> float:
    """Return the milliseconds for each link of a chain."""
    return 1000 / _drain(engine, _enqueue_chain)


def _gap(engine: Engine, enqueue: Callable[[Session, str], int]) -> float:
    """Return the milliseconds from the end of the job that pauses to the start of the final job."""
    with tempfile.NamedTemporaryFile() as file:
        _drain(engine, lambda session: enqueue(session, file.name))
        moments: dict[int, float] = dict(MARKS.iter_unpack(Path(file.name).read_bytes()))
    return 1000 * (moments[_BEGUN] - moments[_ENDED])


if __name__ == "__main__":
    work.main()
