"""How the queues and processes stand right now, for people."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Double, case, cast, func, select
from sqlalchemy.orm import Session

from sqla_jobs.core import Jobs
from sqla_jobs.models import LIVE

_SHOWN = 10
"""Running jobs that are shown of one process."""


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """One queue; `oldest_wait` is the seconds its first queued job has been due."""

    name: str
    queued: int
    scheduled: int
    running: int
    oldest_wait: float | None
    paused: bool


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
class Status:
    """The whole picture, and in plain words what is wrong with it."""

    queues: list[QueueStatus]
    processes: list[ProcessStatus]
    warnings: list[str]


def read_status(session: Session, jobs: Jobs[Any]) -> Status:
    """The status of all queues and processes; the tasks must have been imported for the warnings."""
    queues, processes = _queues(session, jobs), read_processes(session, jobs)
    served = {name for process in processes if process.alive for name in process.queues}
    warnings = [
        f"{queue.queued} jobs wait in queue {queue.name!r}, which no live worker serves"
        for queue in queues
        if queue.queued and queue.name not in served
    ]
    for task, count in _unknown(session, jobs).items():
        warnings.append(f"{count} jobs wait for task {task!r}, which is registered nowhere in this application")
    return Status(queues, processes, warnings)


def _queues(session: Session, jobs: Jobs[Any]) -> list[QueueStatus]:
    job = jobs.Job
    counts = [func.count(case((job.state == state, 1))) for state in ("queued", "scheduled", "running")]
    wait = func.extract("epoch", func.clock_timestamp() - func.min(case((job.state == "queued", job.run_at))))
    rows = session.execute(
        select(job.queue, *counts, cast(wait, Double)).where(job.state.in_(LIVE)).group_by(job.queue)
    )
    paused = set(session.scalars(select(jobs.Queue.name).where(jobs.Queue.paused_at.is_not(None))))
    found = {row[0]: QueueStatus(row[0], row[1], row[2], row[3], row[4], row[0] in paused) for row in rows}
    idle = {name: QueueStatus(name, 0, 0, 0, None, True) for name in paused - found.keys()}
    return sorted([*found.values(), *idle.values()], key=lambda queue: queue.name)


def read_processes(session: Session, jobs: Jobs[Any]) -> list[ProcessStatus]:
    """All processes, and what each has been running longest."""
    process = jobs.Process
    age = cast(func.extract("epoch", func.clock_timestamp() - process.beat_at), Double)
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
