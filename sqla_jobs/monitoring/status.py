"""How the queues and processes stand right now, for people."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Double, Text, case, cast, func, select, text
from sqlalchemy.orm import Session, aliased

from sqla_jobs.jobs import Jobs
from sqla_jobs.models.columns import ENDED, LIVE

_SHOWN = 10
"""Running jobs that are shown of one process."""
_COUNTED = 10_000


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """One queue; `oldest_wait` is the seconds its first queued job has been due.

    `per_minute` jobs ended in the last minute.
    """

    name: str
    queued: int
    scheduled: int
    running: int
    oldest_wait: float | None
    paused: bool
    per_minute: int


@dataclass(frozen=True, slots=True)
class Running:
    """A job that a process holds; `seconds` since it was claimed."""

    job_id: int
    task: str
    attempt: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process; `beat_age` is the seconds since its last heartbeat, `running` what it has held longest."""

    id: uuid.UUID
    kind: str
    host: str
    pid: int
    queues: dict[str, int]
    beat_age: float
    alive: bool
    running: list[Running]


@dataclass(frozen=True, slots=True)
class Failures:
    """Jobs of one task that failed by one kind of error; `last` of them is the newest, with its error."""

    task: str
    error_type: str
    count: int
    last_job_id: int
    last_error: str


@dataclass(frozen=True, slots=True)
class Status:
    """The whole picture, and in plain words what is wrong with it."""

    queues: list[QueueStatus]
    processes: list[ProcessStatus]
    failures: list[Failures]
    """Of the last day, the most frequent first."""
    warnings: list[str]


def read_status(session: Session, jobs: Jobs[Any]) -> Status:
    """The status of all queues and processes; the tasks must have been imported for the warnings."""
    queues, processes = _queues(session, jobs), read_processes(session, jobs)
    alive = [process for process in processes if process.alive]
    served = {name for process in alive for name in process.queues}
    warnings = [
        f"{queue.queued} jobs wait in queue {queue.name!r}, which no live worker serves"
        for queue in queues
        if queue.queued and queue.name not in served
    ]
    for task, count in _unknown(session, jobs).items():
        warnings.append(f"{count} jobs wait for task {task!r}, which is registered nowhere in this application")
    if (schedules := _enabled_schedules(session, jobs)) and not any(process.kind == "clock" for process in alive):
        warnings.append(f"{schedules} schedules are enabled, and no live process runs a clock")
    return Status(queues, processes, read_failures(session, jobs), warnings)


def read_failures(session: Session, jobs: Jobs[Any]) -> list[Failures]:
    """What failed in the last day, by task and error: of the newest 10,000 failed jobs."""
    job, run = jobs.Job, jobs.Run
    failed = (
        select(job.id, job.task)
        .where(job.state == text("'failed'"), job.finished_at > func.now() - timedelta(days=1))
        .order_by(job.finished_at.desc())
        .limit(_COUNTED)
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
    examples = session.execute(
        select(run.id, job.id, run.error, cast(job.args, Text))
        .join(job, job.id == run.job_id)
        .where(run.id.in_([group[3] for group in groups]))
    )
    of_run = {row[0]: row[1:] for row in examples}
    found: list[Failures] = []
    for task, error_type, count, run_id in groups:
        job_id, error, args = of_run[run_id]
        found.append(Failures(task, error_type, count, job_id, jobs.tasks.secrets(task, args).text(error or "")))
    return found


def _enabled_schedules(session: Session, jobs: Jobs[Any]) -> int:
    return session.scalar(select(func.count()).where(jobs.Schedule.enabled)) or 0


def _queues(session: Session, jobs: Jobs[Any]) -> list[QueueStatus]:
    job = jobs.Job
    counts = [func.count(case((job.state == state, 1))) for state in ("queued", "scheduled", "running")]
    wait = func.extract("epoch", func.clock_timestamp() - func.min(case((job.state == "queued", job.run_at))))
    live = select(job.queue, *counts, cast(wait, Double)).where(job.state.in_(LIVE)).group_by(job.queue)
    found: dict[str, Sequence[Any]] = {row[0]: row[1:] for row in session.execute(live)}
    paused = set(session.scalars(select(jobs.Queue.name).where(jobs.Queue.paused_at.is_not(None))))
    ended = _ended_per_minute(session, jobs)
    statuses: list[QueueStatus] = []
    for name in sorted(found.keys() | paused | ended.keys()):
        queued, scheduled, running, oldest = found.get(name, (0, 0, 0, None))
        statuses.append(QueueStatus(name, queued, scheduled, running, oldest, name in paused, ended.get(name, 0)))
    return statuses


def _ended_per_minute(session: Session, jobs: Jobs[Any]) -> dict[str, int]:
    job = jobs.Job
    rows = session.execute(
        select(job.queue, func.count())
        .where(job.state.in_(ENDED), job.finished_at > func.now() - timedelta(minutes=1))
        .group_by(job.queue)
    )
    return {row[0]: row[1] for row in rows}


def read_processes(session: Session, jobs: Jobs[Any]) -> list[ProcessStatus]:
    """All processes, and what each has been running longest."""
    process = jobs.Process
    age = cast(func.extract("epoch", func.clock_timestamp() - process.heartbeat_at), Double)
    rows = session.execute(
        select(process.id, process.kind, process.host, process.pid, process.queues, age, age < process.lease).order_by(
            process.started_at
        )
    )
    running = _running(session, jobs)
    return [
        ProcessStatus(process_id, kind, host, pid, queues, float(beat_age), alive, running.get(process_id, []))
        for process_id, kind, host, pid, queues, beat_age, alive in rows
    ]


def _running(session: Session, jobs: Jobs[Any]) -> dict[uuid.UUID, list[Running]]:
    """The longest of each process."""
    job = jobs.Job
    age = cast(func.extract("epoch", func.clock_timestamp() - job.started_at), Double)
    place = func.row_number().over(partition_by=job.process_id, order_by=job.started_at)
    held = (
        select(job.process_id, job.id, job.task, job.attempt, age.label("age"), place.label("place"))
        .where(job.state == "running")
        .subquery()
    )
    found: dict[uuid.UUID, list[Running]] = {}
    columns = (held.c.process_id, held.c.id, held.c.task, held.c.attempt, held.c.age)
    for process_id, *rest in session.execute(select(*columns).where(held.c.place <= _SHOWN).order_by(held.c.place)):
        found.setdefault(process_id, []).append(Running(*rest))
    return found


def _unknown(session: Session, jobs: Jobs[Any]) -> dict[str, int]:
    job = jobs.Job
    rows = session.execute(
        select(job.task, func.count())
        .where(job.state == "queued", job.task.not_in(list(jobs.tasks)))
        .group_by(job.task)
        .order_by(job.task)
    )
    return {row[0]: row[1] for row in rows}
