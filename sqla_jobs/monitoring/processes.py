"""The workers and clocks, and what each runs."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.queries.processes import age_of, is_alive

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
    begun: int
    """Running jobs that it may have begun, those that it has claimed ahead not counted."""
    claimed: int
    """Running jobs that it has claimed ahead, and begun none of."""
    version: str
    """Of this library, in that process."""
    clock_offset: float | None
    """Seconds by which its host's clock is ahead of the server's."""
    idle: float | None
    """Seconds since a job last ended in it, to within some seconds."""
    age: float
    """Seconds since it started."""
    stalled: float | None
    """Seconds since code of it last ran; `None` while it makes progress, as far as its parent process sees that."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The last heartbeat of a process, and after how many seconds without another one it is dead."""

    pid: int
    beat_age: float
    lease: float


@dataclass(frozen=True, slots=True)
class Held:
    """Running jobs of one queue in one process: those that have begun at most, and those that were claimed ahead.

    Threads are filled before jobs are claimed ahead, so at most as many have begun as the process runs of that
    queue at once. Where the process has vanished all may have begun.
    """

    queue: str
    process_id: uuid.UUID
    begun: int
    claimed: int


def read_held(session: Session, jobs: Jobs[Any]) -> list[Held]:
    """What is running, by queue and process."""
    job, process = jobs.Job, jobs.Process
    rows = session.execute(
        select(job.queue, job.process_id, func.count(), process.queues)
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
    """How many jobs of `queue` a process runs at once, as far as its row says so."""
    found = (queues or {}).get(queue)
    return found if isinstance(found, int) and found > 0 else otherwise


def read_processes(session: Session, jobs: Jobs[Any], held: Sequence[Held]) -> list[ProcessStatus]:
    """All processes, and what each has been running longest; `held` is what all of them run."""
    process = jobs.Process
    moments = (process.heartbeat_at, process.last_finished_at, process.started_at, process.stalled_since)
    columns: Any = (process, is_alive(process), *map(age_of, moments))
    rows: Any = session.execute(select(*columns).order_by(process.started_at))
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


def read_freshest(session: Session, jobs: Jobs[Any], host: str) -> Heartbeat | None:
    """The freshest heartbeat of a worker process of `host`; `None` where it has no such process."""
    process: Any = jobs.Process
    age = age_of(process.heartbeat_at)
    here = select(process.pid, age, process.lease).where(process.kind == "worker", process.host == host)
    row = session.execute(here.order_by(age / process.lease).limit(1)).one_or_none()
    return None if row is None else Heartbeat(*row)


def _begun(held: list[tuple[str, int, Running]], queues: dict[str, Any]) -> list[Running]:
    """What may have begun of the jobs that a process holds, the longest held of each queue; some of them."""
    return [job for queue, place, job in held if place <= places(queues, queue, _SHOWN)][:_SHOWN]


def _running(session: Session, jobs: Jobs[Any]) -> dict[uuid.UUID, list[tuple[str, int, Running]]]:
    """The longest of each process and queue, each with its place among these."""
    job = jobs.Job
    order = (job.started_at, job.current_run_id)
    place = func.row_number().over(partition_by=[job.process_id, job.queue], order_by=order)
    held = (
        select(
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
    longest = select(*columns).where(held.c.place <= _SHOWN).order_by(held.c.started_at, held.c.current_run_id)
    found: dict[uuid.UUID, list[tuple[str, int, Running]]] = {}
    for process_id, queue, number, *rest in session.execute(longest):
        found.setdefault(process_id, []).append((queue, number, Running(*rest)))
    return found
