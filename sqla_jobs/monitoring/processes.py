"""The workers and clocks, and what each runs."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Double, cast, func, select
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs

_SHOWN = 10
"""Running jobs that are shown of one process."""


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
