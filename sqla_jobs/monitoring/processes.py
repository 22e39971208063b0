"""Workers and clocks, and the jobs that each is running."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.queries.processes import age_of, is_alive

_SHOWN = 10
"""The maximum number of running jobs shown for a process."""


@dataclass(frozen=True, slots=True)
class Running:
    """A job that a process has claimed, and the `seconds` since the claim."""

    job_id: int
    task: str
    attempt: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process. `beat_age` is the age of its last heartbeat in seconds; `running` holds its oldest running jobs."""

    id: uuid.UUID
    kind: str
    host: str
    pid: int
    queues: dict[str, int]
    beat_age: float
    alive: bool
    running: list[Running]
    begun: int
    """The number of running jobs, not counting those that the process has claimed ahead."""
    claimed: int
    """The number of jobs that the process has claimed ahead but not started."""
    version: str
    """The version of this library that the process uses."""
    clock_offset: float | None
    """Seconds by which its host's clock is ahead of the server's."""
    idle: float | None
    """Seconds since its last job ended, accurate to a few seconds."""
    age: float
    """Seconds since the process started."""
    stalled: float | None
    """Seconds without progress, measured by its parent; `None` while it makes progress or has no parent."""


@dataclass(frozen=True, slots=True)
class Held:
    """The number of jobs that a process has claimed from one queue.

    At most `begun` of them have started. The other `claimed` jobs were claimed ahead. Slots are filled before jobs are
    claimed ahead, so `begun` is at most the queue's concurrency in the process. If the process has vanished, all of the
    jobs may have started.
    """

    queue: str
    process_id: uuid.UUID
    begun: int
    claimed: int


def read_held(session: Session, jobs: Jobs[Any]) -> list[Held]:
    """Count running jobs by queue and process."""
    job, process = jobs.Job, jobs.Process
    rows = session.execute(
        sa.select(job.queue, job.process_id, sa.func.count(), process.queues)
        .outerjoin(process, process.id == job.process_id)
        .where(job.state == "running")
        .group_by(job.queue, job.process_id, process.id),
        bind_arguments={"mapper": job},
    )
    found: list[Held] = []
    for queue, process_id, number, queues in rows:
        begun = min(number, places(queues, queue, number))
        found.append(Held(queue, process_id, begun, number - begun))
    return found


def places(queues: dict[str, Any] | None, queue: str, otherwise: int) -> int:
    """Return the concurrency of `queue` according to the `queues` in a process's row; `otherwise` if it is missing."""
    found = (queues or {}).get(queue)
    return found if isinstance(found, int) and found > 0 else otherwise


def read_processes(session: Session, jobs: Jobs[Any], held: Sequence[Held]) -> list[ProcessStatus]:
    """Return all processes with their oldest running jobs. `held` comes from `read_held`."""
    process = jobs.Process
    moments = (process.heartbeat_at, process.last_finished_at, process.started_at, process.stalled_since)
    columns: Any = (process, is_alive(process), *map(age_of, moments))
    rows: Any = session.execute(sa.select(*columns).order_by(process.started_at))
    running = _running(session, jobs)
    return [
        ProcessStatus(
            one.id,
            one.kind,
            one.host,
            one.pid,
            one.queues,
            float(beat_age),
            alive,
            _begun(running.get(one.id, []), one.queues),
            sum(part.begun for part in held if part.process_id == one.id),
            sum(part.claimed for part in held if part.process_id == one.id),
            one.version,
            one.clock_offset,
            since_job,
            float(age),
            stalled,
        )
        for one, alive, beat_age, since_job, age, stalled in rows
    ]


def read_freshest(session: Session, jobs: Jobs[Any], host: str) -> Any:
    """Return pid, age and lease of the freshest heartbeat of a worker on `host`; `None` if the host has no worker."""
    process: Any = jobs.Process
    age = age_of(process.heartbeat_at).label("age")
    here = sa.select(process.pid, age, process.lease).where(process.kind == "worker", process.host == host)
    return session.execute(here.order_by(age / process.lease).limit(1)).one_or_none()


def _begun(held: list[tuple[str, int, Running]], queues: dict[str, Any]) -> list[Running]:
    """Return each queue's oldest jobs, up to the queue's concurrency: these may have started."""
    return [job for queue, place, job in held if place <= places(queues, queue, _SHOWN)][:_SHOWN]


def _running(session: Session, jobs: Jobs[Any]) -> dict[uuid.UUID, list[tuple[str, int, Running]]]:
    """Return the oldest running jobs of each process and queue, each with its rank among them."""
    job = jobs.Job
    order = (job.started_at, job.current_run_id)
    place = sa.func.row_number().over(partition_by=[job.process_id, job.queue], order_by=order)
    held = (
        sa.select(
            job.process_id,
            job.queue,
            place.label("place"),
            job.id,
            job.task,
            job.attempt,
            age_of(job.started_at).label("age"),
            *order,
        )
        .where(job.state == "running")
        .subquery()
    )
    columns = (held.c.process_id, held.c.queue, held.c.place, held.c.id, held.c.task, held.c.attempt, held.c.age)
    longest = sa.select(*columns).where(held.c.place <= _SHOWN).order_by(held.c.started_at, held.c.current_run_id)
    found: dict[uuid.UUID, list[tuple[str, int, Running]]] = {}
    for process_id, queue, number, *rest in session.execute(longest):
        found.setdefault(process_id, []).append((queue, number, Running(*rest)))
    return found
