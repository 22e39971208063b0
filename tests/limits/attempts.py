"""What the runs of jobs say about limits: how many ran at once, and how many started in a time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from tests.limited_shop import jobs


def enqueue(engine: Engine, task: Any, arguments: Iterable[dict[str, Any]]) -> None:
    with Session(engine) as session:
        task.enqueue_many(session, arguments)
        session.commit()


def left(engine: Engine) -> int:
    """Jobs that have not ended."""
    with Session(engine) as session:
        return session.scalar(select(func.count()).where(jobs.Job.finished_at.is_(None))) or 0


def most_at_once(engine: Engine, *tasks: str, by: Callable[[Any], Any] = lambda _: None) -> dict[Any, int]:
    """By `by` of the arguments, the largest number of attempts that had a lease at one moment."""
    Job, Run = jobs.Job, jobs.Run
    with Session(engine) as session:
        rows = session.execute(
            select(Job.args, Run.started_at, Run.finished_at).join(Run, Run.job_id == Job.id).where(Job.task.in_(tasks))
        ).all()
    events: dict[Any, list[tuple[datetime, int]]] = {}
    for args, started, finished in rows:
        events.setdefault(by(args), []).extend([(started, 1), (finished, -1)])
    return {key: _peak(sorted(its)) for key, its in events.items()}


def _peak(events: list[tuple[datetime, int]]) -> int:
    running = peak = 0
    for _, change in events:
        running += change
        peak = max(peak, running)
    return peak


def most_in(engine: Engine, seconds: float, *tasks: str) -> int:
    """The largest number of starts in any so many seconds, by the server's clock."""
    with Session(engine) as session:
        moments = session.scalars(
            select(func.extract("epoch", jobs.Job.started_at)).where(
                jobs.Job.task.in_(tasks), jobs.Job.started_at.is_not(None)
            )
        )
        starts = sorted(map(float, moments))
    return max((bisect_left(starts, one + seconds - 1e-6) - place for place, one in enumerate(starts)), default=0)
