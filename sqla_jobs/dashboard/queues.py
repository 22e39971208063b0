"""How the queues stand, at the same price for ten waiting jobs and for a million."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Double, Integer, SmallInteger, case, cast, column, func, literal, select, true, values
from sqlalchemy import Text as TextType
from sqlalchemy.orm import Session

from sqla_jobs.core import Jobs
from sqla_jobs.dashboard.reading import COUNTED, Count
from sqla_jobs.queries import PRIORITIES


@dataclass(frozen=True)
class Queue:
    """One queue. `oldest_wait` is the seconds that the job which was queued first has been due."""

    name: str
    queued: Count
    scheduled: Count
    running: int
    oldest_wait: float | None
    paused: bool
    is_served: bool


def read_queues(session: Session, jobs: Jobs[Any], served: Iterable[str]) -> list[Queue]:
    """All queues that have jobs, are paused, or are served."""
    job: Any = jobs.Job
    on_jobs = {"mapper": job}
    running = dict(
        session.execute(
            select(job.queue, func.count()).where(job.state == "running").group_by(job.queue), bind_arguments=on_jobs
        )
        .tuples()
        .all()
    )
    first = (
        select(job.queue).where(job.state == "scheduled").order_by(job.run_at).limit(COUNTED + 1).subquery("first")
    )
    scheduled = dict(
        session.execute(select(first.c.queue, func.count()).group_by(first.c.queue), bind_arguments=on_jobs)
        .tuples()
        .all()
    )
    all_scheduled = sum(scheduled.values()) <= COUNTED
    paused = set(session.scalars(select(jobs.Queue.name).where(jobs.Queue.paused_at.is_not(None))))
    served = set(served)
    names = {*waiting_queues(session, jobs), *running, *scheduled, *paused, *served}
    queued = _queued(session, jobs, sorted(names))
    return [
        Queue(
            name,
            Count(min(queued[name][0], COUNTED), is_exact=queued[name][0] <= COUNTED),
            Count(scheduled.get(name, 0), is_exact=all_scheduled),
            running.get(name, 0),
            queued[name][1],
            name in paused,
            name in served,
        )
        for name in sorted(names)
    ]


def waiting_queues(session: Session, jobs: Jobs[Any]) -> list[str]:
    """The queues with queued jobs: from one to the next in the index, not job by job."""
    job: Any = jobs.Job
    name = select(func.min(job.queue).label("name")).where(job.state == "queued").cte("names", recursive=True)
    following = (
        select(func.min(job.queue)).where(job.state == "queued", job.queue > name.c.name).correlate(name)
    ).scalar_subquery()
    name = name.union_all(select(following).where(name.c.name.is_not(None)))
    query = select(name.c.name).where(name.c.name.is_not(None))
    return list(session.scalars(query, bind_arguments={"mapper": job}))


def _queued(session: Session, jobs: Jobs[Any], names: list[str]) -> dict[str, tuple[int, float | None]]:
    """Of each queue how many are queued, one more than `COUNTED` at most, and the longest wait in seconds."""
    if not names:
        return {}
    job: Any = jobs.Job
    lane = values(column("name", TextType), name="lane").data([(name,) for name in names])
    here = (job.state == "queued", job.queue == lane.c.name)
    some = select(literal(1).label("one")).where(*here).limit(COUNTED + 1).lateral("some")
    counted = select(func.count().label("number")).select_from(some).lateral("counted")
    level = values(column("priority", SmallInteger), name="level").data([(one,) for one in PRIORITIES])
    head = (
        select(job.run_at)
        .where(*here, job.priority == level.c.priority)
        .order_by(job.position)
        .limit(1)
        .lateral("head")
    )
    oldest = select(func.min(head.c.run_at).label("due")).select_from(level.join(head, true())).lateral("oldest")
    wait = cast(func.date_part("epoch", func.clock_timestamp() - oldest.c.due), Double)
    query = select(lane.c.name, cast(counted.c.number, Integer), case((wait < 0, 0.0), else_=wait)).select_from(
        lane.join(counted, true()).join(oldest, true())
    )
    return {row[0]: (row[1], row[2]) for row in session.execute(query, bind_arguments={"mapper": job})}
