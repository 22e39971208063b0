"""The current status of queues and processes, for people."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.examine import problems
from sqla_jobs.monitoring.failures import Failures, Retrying, read_failures, read_retrying
from sqla_jobs.monitoring.finding import Finding
from sqla_jobs.monitoring.processes import ProcessStatus
from sqla_jobs.monitoring.queues import PausedTask, read_paused_tasks, read_work
from sqla_jobs.runtime.metrics import QueueStatus
from sqla_jobs.tasks.sessions import AnySession, plain_session

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


def read_status(session: AnySession, jobs: Jobs[Any]) -> Status:
    """Return the status of all queues and processes, as `sqla-jobs status --json` prints it. It only reads.

    - `jobs`: the `Jobs`, whose tasks are imported first: the warnings depend on them.
    """
    own = plain_session(session, "status(session, jobs)")
    jobs.tasks.load()
    ended = _ended_per_minute(own, jobs)
    queues, processes = read_work(own, jobs, per_minute=ended, most=_COUNTED)
    return Status(
        queues,
        read_paused_tasks(own, jobs),
        processes,
        read_failures(own, jobs),
        read_retrying(own, jobs),
        problems(own, jobs),
    )


def _ended_per_minute(session: Session, jobs: Jobs[Any]) -> dict[str, int]:
    job = jobs.Job
    rows = session.execute(
        sa.select(job.queue, sa.func.count())
        .where(job.state.in_(("succeeded", "failed")), job.finished_at > sa.func.now() - timedelta(minutes=1))
        .group_by(job.queue)
    )
    return {row[0]: row[1] for row in rows}
