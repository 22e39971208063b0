"""How the queues and processes stand right now, for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Text, cast, func, select, text
from sqlalchemy.orm import Session, aliased

from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import ENDED
from sqla_jobs.monitoring.examine import problems
from sqla_jobs.monitoring.finding import Finding, ask
from sqla_jobs.monitoring.processes import ProcessStatus, read_processes
from sqla_jobs.monitoring.queues import Queue, read_queues, served_queues

_COUNTED = 1_000_000
"""Jobs of a queue that are counted; there may be more."""
_FAILED = 10_000


@dataclass(frozen=True)
class QueueStatus(Queue):
    """One queue, how many jobs of it ended in the last minute, and who paused it when, as far as the audit says."""

    per_minute: int
    paused_at: datetime | None = None
    paused_by: str | None = None


@dataclass(frozen=True, slots=True)
class Failures:
    """Jobs of one task that failed by one kind of error; `last` of them is the newest, with its error."""

    task: str
    error_type: str
    count: int
    last_job_id: int
    last_error: str


@dataclass(frozen=True, slots=True)
class Retrying:
    """Jobs of one task that failed by one kind of error and are tried again; `next_at` is the first of them."""

    task: str
    error_type: str
    count: int
    next_at: datetime
    last_job_id: int
    last_error: str


@dataclass(frozen=True, slots=True)
class Status:
    """The whole picture, and what is wrong with it."""

    queues: list[QueueStatus]
    processes: list[ProcessStatus]
    failures: list[Failures]
    """Of the last day, the most frequent first."""
    retrying: list[Retrying]
    """What fails and has attempts left."""
    warnings: list[Finding]


def read_status(session: Session, jobs: Jobs[Any]) -> Status:
    """The status of all queues and processes; the tasks must have been imported for the warnings."""
    processes = read_processes(session, jobs)
    ended = _ended_per_minute(session, jobs)
    queues = read_queues(session, jobs, served_queues(processes), others=ended, most=_COUNTED)
    paused = _paused(session, jobs)
    return Status(
        [
            QueueStatus(**vars(queue), per_minute=ended.get(queue.name, 0), **paused.get(queue.name, {}))
            for queue in queues
        ],
        processes,
        read_failures(session, jobs),
        read_retrying(session, jobs),
        problems(session, jobs, queues, processes),
    )


def _paused(session: Session, jobs: Jobs[Any]) -> dict[str, dict[str, Any]]:
    audit, queue = jobs.Audit, jobs.Queue
    by = (
        select(audit.actor)
        .where(audit.action == "pause", audit.subject == func.concat("queue ", queue.name))
        .order_by(audit.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    rows = ask(session, jobs, select(queue.name, queue.paused_at, by).where(queue.paused_at.is_not(None)))
    return {name: {"paused_at": at, "paused_by": actor} for name, at, actor in rows}


def read_failures(session: Session, jobs: Jobs[Any]) -> list[Failures]:
    """What failed in the last day, by task and error: of the newest 10,000 failed jobs."""
    job, run = jobs.Job, jobs.Run
    failed = (
        select(job.id, job.task)
        .where(job.state == text("'failed'"), job.finished_at > func.now() - timedelta(days=1))
        .order_by(job.finished_at.desc())
        .limit(_FAILED)
        .subquery()
    )
    of_job = aliased(run)
    last = select(func.max(of_job.id)).where(of_job.job_id == failed.c.id).scalar_subquery()
    kind, newest = func.coalesce(run.error_type, ""), func.max(run.id)
    groups = session.execute(
        select(failed.c.task, kind, func.count(), newest)
        .join(run, run.id == last)
        .group_by(failed.c.task, kind)
        .order_by(func.count().desc(), failed.c.task)
    ).all()
    of_run = _examples(session, jobs, [group[3] for group in groups])
    return [Failures(task, kind, count, *of_run[run_id]) for task, kind, count, run_id in groups]


def _examples(session: Session, jobs: Jobs[Any], run_ids: Sequence[int]) -> dict[int, tuple[int, str]]:
    """The job and the error of each of these runs, without secrets."""
    job, run = jobs.Job, jobs.Run
    rows = session.execute(
        select(run.id, job.id, job.task, run.error, cast(job.args, Text))
        .join(job, job.id == run.job_id)
        .where(run.id.in_(run_ids))
    )
    return {
        run_id: (job_id, jobs.tasks.secrets(task, args).text(error or "")) for run_id, job_id, task, error, args in rows
    }


def read_retrying(session: Session, jobs: Jobs[Any]) -> list[Retrying]:
    """What failed last time and is tried again, by task and error: of the next 10,000 that were tried before."""
    job, run = jobs.Job, jobs.Run
    waiting = (
        select(job.id, job.task, job.run_at)
        .where(job.state.in_(["scheduled", "queued"]), job.started_at.is_not(None))
        .order_by(job.run_at)
        .limit(_FAILED)
        .subquery()
    )
    of_job = aliased(run)
    last = select(func.max(of_job.id)).where(of_job.job_id == waiting.c.id).scalar_subquery()
    kind = func.coalesce(run.error_type, "")
    groups = session.execute(
        select(waiting.c.task, kind, func.count(), func.min(waiting.c.run_at), func.max(run.id))
        .join(run, run.id == last)
        .where(run.outcome.in_(["retried", "lost"]))
        .group_by(waiting.c.task, kind)
        .order_by(func.count().desc(), waiting.c.task)
    ).all()
    of_run = _examples(session, jobs, [group[4] for group in groups])
    return [Retrying(task, kind, count, at, *of_run[run_id]) for task, kind, count, at, run_id in groups]


def _ended_per_minute(session: Session, jobs: Jobs[Any]) -> dict[str, int]:
    job = jobs.Job
    rows = session.execute(
        select(job.queue, func.count())
        .where(job.state.in_(ENDED), job.finished_at > func.now() - timedelta(minutes=1))
        .group_by(job.queue)
    )
    return {row[0]: row[1] for row in rows}
