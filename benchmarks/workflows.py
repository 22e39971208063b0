"""Jobs after others beside plain jobs, and steps beside transactions by hand.

As a program it is the process of a worker, as `benchmarks.work` is, that knows tasks with steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from benchmarks import plain, speed, work
from benchmarks.report import Figure
from benchmarks.speed import drain, in_turn
from benchmarks.work import jobs, nothing, workers
from sqla_jobs import RunContext

PROGRAM = "benchmarks.workflows"
_WIDE, _TURNS = 10_000, 9
_LINKS = 1000
_STEPS, _STEPPED = 10, 300


@jobs.task
def stepped(run: RunContext, i: int) -> None:
    for number in range(_STEPS):
        run.step(f"step {number}", str, i)


def measure(engine: Engine, repetitions: int) -> Iterator[Figure]:
    """All of it, in some two minutes."""
    yield from _fan_in(engine)
    links = [_chain(engine) for _ in range(repetitions)]
    yield Figure("jobs after others", f"a chain of {_LINKS:,}, a link", "ms", statistics.median(links))
    steps, transactions = in_turn(
        repetitions,
        lambda: _STEPS * drain(engine, _STEPPED, task=stepped, program=PROGRAM),
        lambda: plain.at_once(engine, _STEPS * _STEPPED, plain.add_effects),
    )
    yield Figure("steps of plain tasks", "beside 8 threads of sessions", "steps/s", steps, transactions)


def _fan_in(engine: Engine) -> Iterator[Figure]:
    """The drain, and the time from the last end before the last job to its start."""
    names = {"after the jobs": _enqueue_after_jobs, "after their batch": _enqueue_after_batch}
    gaps: dict[str, list[float]] = {name: [] for name in names}

    def run(name: str) -> float:
        rate = _drain(engine, names[name])
        gaps[name].append(_gap(engine))
        return rate

    *rates, without = in_turn(_TURNS, *(partial(run, name) for name in names), partial(drain, engine, _WIDE))
    for name, rate in zip(names, rates, strict=True):
        yield Figure(f"drain of {_WIDE:,} and one after them, beside plain jobs", name, "jobs/s", rate, without)
    for name in names:
        yield Figure(
            "jobs after others", f"one {name} of {_WIDE:,}: last end to start, p50", "ms", statistics.median(gaps[name])
        )


def _enqueue_after_jobs(session: Session) -> int:
    nothing.enqueue_many(session, ({"i": i} for i in range(_WIDE)))
    before = session.scalars(select(jobs.Job)).all()
    nothing.options(after=before).enqueue(session, i=_WIDE)
    return _WIDE + 1


def _enqueue_after_batch(session: Session) -> int:
    batch = jobs.batch(session)
    nothing.options(batch=batch).enqueue_many(session, ({"i": i} for i in range(_WIDE)))
    nothing.options(after=batch).enqueue(session, i=_WIDE)
    return _WIDE + 1


def _enqueue_chain(session: Session) -> int:
    link = nothing.enqueue(session, i=0)
    for i in range(1, _LINKS):
        link = nothing.options(after=link).enqueue(session, i=i)
    return _LINKS


def _drain(engine: Engine, enqueue: Callable[[Session], int]) -> float:
    """Jobs a second, of what `enqueue` makes before the worker begins."""
    work.empty(engine)
    with workers(engine) as (worker,):
        with Session(engine) as session:
            count = enqueue(session)
            session.commit()
        work.settle(engine)
        before = speed.claims(engine)
        worker.go()
        return speed.done(engine, count, claims_before=before)


def _chain(engine: Engine) -> float:
    """Milliseconds a link."""
    return 1000 / _drain(engine, _enqueue_chain)


def _gap(engine: Engine) -> float:
    """Milliseconds from the last end of the others to the start of the last job."""
    run = jobs.Run
    last = select(func.max(run.job_id)).scalar_subquery()
    started = func.max(run.started_at).filter(run.job_id == last)
    ended = func.max(run.finished_at).filter(run.job_id != last)
    with engine.connect() as connection:
        return 1000 * connection.execute(select(func.extract("epoch", started - ended))).scalar_one()


if __name__ == "__main__":
    work.main()
