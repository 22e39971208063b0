"""What is wrong, in plain words, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from sqla_jobs.dashboard.render.formatting import duration, plural
from sqla_jobs.dashboard.views.queues import Queue
from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.status import ProcessStatus

_LOOKED_AT = 2_000
"""Queued jobs, the next to run first, among which unknown tasks are looked for: they gather there."""
_LATE = timedelta(minutes=1)
_OLD = timedelta(minutes=15)
"""Age of a transaction that is worth a word."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    text: str
    remedy: str


def warnings(
    session: Session, jobs: Jobs[Any], queues: Sequence[Queue], processes: Sequence[ProcessStatus], now: datetime
) -> list[Problem]:
    """All that is wrong."""
    return [
        *_workers(queues, processes),
        *_unknown(session, jobs),
        *_clock(session, jobs, processes, now),
        *_old_transaction(session, jobs, now),
    ]


def _workers(queues: Sequence[Queue], processes: Sequence[ProcessStatus]) -> list[Problem]:
    waiting = [queue for queue in queues if queue.queued and not queue.paused]
    if not any(process.alive and process.kind == "worker" for process in processes):
        how_many = sum(queue.queued for queue in waiting)
        said = f"No worker is alive, and {plural(how_many, 'job')} wait." if how_many else "No worker is alive."
        return [Problem(said, "Start one: python -m sqla_jobs.worker MODULE:ATTR")]
    return [
        Problem(
            f"{plural(queue.queued, 'job')} wait in queue “{queue.name}”, which no live worker serves.",
            f"Start a worker with --queues {queue.name}, or move the jobs to another queue.",
        )
        for queue in waiting
        if not queue.is_served
    ]


def _unknown(session: Session, jobs: Jobs[Any]) -> list[Problem]:
    jobs.tasks.load()
    job: Any = jobs.Job
    next_to_run = (
        select(job.task)
        .where(job.state == "queued")
        .order_by(job.queue, job.priority, job.position)
        .limit(_LOOKED_AT)
        .subquery()
    )
    query = (
        select(next_to_run.c.task, func.count())
        .where(next_to_run.c.task.not_in(list(jobs.tasks)))
        .group_by(next_to_run.c.task)
        .order_by(next_to_run.c.task)
        .limit(5)
    )
    return [
        Problem(
            f"{plural(count, 'job')} wait for task “{task}”, which this application does not know.",
            "Deploy the code that declares it, or give it as an alias of the task that replaces it: aliases=[…].",
        )
        for task, count in session.execute(query, bind_arguments={"mapper": job})
    ]


def _clock(session: Session, jobs: Jobs[Any], processes: Sequence[ProcessStatus], now: datetime) -> list[Problem]:
    schedule: Any = jobs.Schedule
    query = select(func.count(), func.min(schedule.next_run_at)).where(schedule.enabled)
    enabled, next_at = session.execute(query, bind_arguments={"mapper": schedule}).one()
    if not enabled:
        return []
    start = "Start one: python -m sqla_jobs.clock MODULE:ATTR, or a worker without --no-clock."
    if not any(process.alive and process.kind == "clock" for process in processes):
        return [Problem(f"No clock is running, so {plural(enabled, 'schedule')} fire nothing.", start)]
    if next_at is not None and now - next_at > _LATE:
        late = duration((now - next_at).total_seconds())
        return [Problem(f"A schedule is overdue by {late}, though a clock is running.", "Look at the clock's log.")]
    return []


def _old_transaction(session: Session, jobs: Jobs[Any], now: datetime) -> list[Problem]:
    """Of another connection to this database, as far as this user may see it."""
    query = text(
        "SELECT pid, xact_start, coalesce(application_name, '') FROM pg_stat_activity"
        " WHERE datname = current_database() AND xact_start < now() - make_interval(secs => :old)"
        " AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend' ORDER BY xact_start LIMIT 1"
    )
    on_jobs = {"mapper": jobs.Job}
    row = session.execute(query, {"old": _OLD.total_seconds()}, bind_arguments=on_jobs).one_or_none()
    if row is None:
        return []
    pid, began, name = row
    who = f"pid {pid}" + (f", {name}" if name else "")
    return [
        Problem(
            f"A transaction has been open for {duration((now - began).total_seconds())} ({who}). Vacuum can remove "
            "nothing that is newer, so every queue gets slower.",
            f"End it: SELECT pg_terminate_backend({pid})",
        )
    ]
