"""The current status of queues and processes, for people."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.examine import problems
from sqla_jobs.monitoring.failures import LOOKED_AT, Failures, Retrying, read_failures, read_retrying
from sqla_jobs.monitoring.finding import Finding
from sqla_jobs.monitoring.paused import PausedTask, read_paused_tasks
from sqla_jobs.monitoring.processes import ProcessStatus
from sqla_jobs.monitoring.queues import ALL, read_work
from sqla_jobs.runtime.figures import QueueStatus

_COUNTED = 1_000_000
"""The maximum number of jobs counted in a queue."""


@dataclass(frozen=True, slots=True)
class Status:
    """The status of an application's jobs, with warnings."""

    queues: list[QueueStatus]
    paused_tasks: list[PausedTask]
    processes: list[ProcessStatus]
    failures: list[Failures]
    """Failures of the last day, the most frequent first."""
    retrying: list[Retrying]
    """Failures of jobs that have attempts left, the most frequent first."""
    warnings: list[Finding]


def read_status(session: Session, jobs: Jobs[Any], *, exact: bool = False) -> Status:
    """Return the status of all queues and processes. Import the tasks first, because the warnings depend on them.

    With `exact`, all jobs are counted; the more there are, the longer it takes.
    """
    ended = _ended_per_minute(session, jobs)
    queues, processes = read_work(session, jobs, per_minute=ended, most=ALL if exact else _COUNTED)
    looked_at = ALL if exact else LOOKED_AT
    return Status(
        queues,
        read_paused_tasks(session, jobs),
        processes,
        read_failures(session, jobs, most=looked_at),
        read_retrying(session, jobs, most=looked_at),
        problems(session, jobs),
    )


def _ended_per_minute(session: Session, jobs: Jobs[Any]) -> dict[str, int]:
    job = jobs.Job
    rows = session.execute(
        select(job.queue, func.count())
        .where(job.state.in_(("succeeded", "failed")), job.finished_at > func.now() - timedelta(minutes=1))
        .group_by(job.queue)
    )
    return {row[0]: row[1] for row in rows}
