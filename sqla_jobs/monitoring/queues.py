"""The status of queues, and what is paused. The cost of reading does not grow with the number of waiting jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.monitoring.processes import Held, ProcessStatus, read_held, read_processes
from sqla_jobs.queries import PRIORITIES
from sqla_jobs.queries.due import waiting_queues as of_waiting
from sqla_jobs.queries.processes import age_of
from sqla_jobs.queries.restrictions import is_paused
from sqla_jobs.rules.wording import Count
from sqla_jobs.runtime.metrics import QueueStatus

COUNTED = 10_000
"""The maximum number of jobs counted in a queue."""
_NOT_READ: Mapping[str, int] = {}


def read_work(
    session: Session,
    jobs: Jobs[Any],
    *,
    per_minute: Mapping[str, int] = _NOT_READ,
    most: int = COUNTED,
) -> tuple[list[QueueStatus], list[ProcessStatus]]:
    """Return queues and all processes.

    The queues are those that have live jobs, are paused or served, or are in `per_minute`. At most `most` queued jobs
    are counted in each queue. Over all queues, at most `COUNTED` scheduled jobs are counted, and as many blocked ones.
    """
    held = read_held(session, jobs)
    processes = read_processes(session, jobs, held)
    served = {name for process in processes if process.alive for name in process.queues}
    return _read_queues(session, jobs, held, served, per_minute, most), processes


def _read_queues(
    session: Session,
    jobs: Jobs[Any],
    held: Iterable[Held],
    served: Set[str],
    per_minute: Mapping[str, int],
    most: int,
) -> list[QueueStatus]:
    job: Any = jobs.Job
    running, claimed = Counter[str](), Counter[str]()
    for part in held:
        running[part.queue] += part.begun
        claimed[part.queue] += part.claimed
    scheduled, blocked = (count_first(session, jobs, state, job.queue) for state in ("scheduled", "blocked"))
    paused = read_paused_queues(session, jobs)
    names = {*waiting_queues(session, jobs), *running, *scheduled, *blocked, *paused, *served, *per_minute}
    queued = _queued(session, jobs, sorted(names), most)
    return [
        QueueStatus(
            name,
            Count(min(queued[name][0], most), is_least=queued[name][0] > most),
            Count(scheduled.get(name, 0), is_least=sum(scheduled.values()) >= COUNTED),
            Count(blocked.get(name, 0), is_least=sum(blocked.values()) >= COUNTED),
            running[name],
            claimed[name],
            queued[name][1],
            name in paused,
            until,
            reason,
            name in served,
            per_minute.get(name, 0),
            at,
            by,
        )
        for name, (_, at, until, reason, by) in ((name, paused.get(name, [None] * 5)) for name in sorted(names))
    ]


def count_first(session: Session, jobs: Jobs[Any], state: str, column: Any) -> dict[str, int]:
    """Count jobs in a state by their queue or task. Of the jobs that are next, or failed last, `COUNTED` are counted.

    The count follows an index, so it reads only rows that it counts.
    """
    job: Any = jobs.Job
    order = {"scheduled": job.run_at, "blocked": job.waits_for, "failed": job.finished_at.desc()}[state]
    some = sa.select(column.label("name")).where(job.state == state)
    if state == "blocked":
        some = some.where(job.waits_for.is_not(None))
    first = some.order_by(order).limit(COUNTED).subquery("first")
    query = sa.select(first.c.name, sa.func.count()).group_by(first.c.name)
    return {row[0]: row[1] for row in session.execute(query, bind_arguments={"mapper": job})}


def waiting_queues(session: Session, jobs: Jobs[Any]) -> list[str]:
    """Return the names of queues with queued jobs."""
    return list(session.scalars(of_waiting(jobs.Job), bind_arguments={"mapper": jobs.Job}))


def _queued(session: Session, jobs: Jobs[Any], names: list[str], most: int) -> dict[str, tuple[int, float | None]]:
    """Return the number of queued jobs of each queue, up to `most` + 1, and the longest wait in seconds."""
    if not names:
        return {}
    job: Any = jobs.Job
    each = sa.values(sa.column("name", sa.Text), name="each").data([(name,) for name in names])
    here = (job.state == "queued", job.queue == each.c.name)
    some = sa.select(sa.literal(1).label("one")).where(*here).limit(most + 1).correlate(each).subquery("some")
    number = sa.select(sa.func.count()).select_from(some).scalar_subquery()
    level = sa.values(sa.column("is_plain", sa.Boolean), sa.column("priority", sa.SmallInteger), name="level")
    level = level.data([*product((True, False), PRIORITIES)])
    head = (  # the first job in each part of the index
        sa.select(job.run_at)
        .where(*here, job.gates.is_(None) == level.c.is_plain, job.priority == level.c.priority)
        .order_by(job.position)
        .limit(1)
        .correlate(each, level)
        .lateral("head")
    )
    oldest = (
        sa.select(sa.func.min(head.c.run_at)).select_from(level.join(head, sa.true())).correlate(each).scalar_subquery()
    )
    wait = age_of(oldest)
    query = sa.select(each.c.name, sa.cast(number, sa.Integer), sa.case((wait < 0, 0.0), else_=wait))
    return {row[0]: (row[1], row[2]) for row in session.execute(query, bind_arguments={"mapper": job})}


@dataclass(frozen=True, slots=True)
class PausedTask:
    """A paused task. `names` are the names under which its jobs are stored: its own name and its aliases."""

    task: str
    names: tuple[str, ...]
    paused_at: datetime
    paused_by: str | None
    paused_until: datetime | None
    pause_reason: str | None


def read_paused_tasks(session: Session, jobs: Jobs[Any]) -> list[PausedTask]:
    """Return all paused tasks by name, including those that code no longer declares."""
    rows = {row.name: row for row in _paused(session, jobs, jobs.PausedTask, "task ")}
    names = dict[str, list[str]]()
    for name in rows:
        own = jobs.tasks[name].name if name in jobs.tasks else name
        names.setdefault(own if own in rows else name, []).append(name)
    first = {task: rows[its[0]] for task, its in names.items()}
    return [
        PausedTask(task, (*its,), min(rows[name].paused_at for name in its), rows[task].by, *first[task][2:4])
        for task, its in names.items()
    ]


def names_of(paused: Iterable[PausedTask]) -> dict[str, str]:
    """Map each stored name of a paused task to the task."""
    return {name: one.task for one in paused for name in one.names}


def read_paused_queues(session: Session, jobs: Jobs[Any]) -> dict[str, Any]:
    """Return the pause of each paused queue: its start as `paused_at`, its end, its reason, and `by` whom."""
    return {row.name: row for row in _paused(session, jobs, jobs.Queue, "queue ")}


def _paused(session: Session, jobs: Jobs[Any], what: Any, kind: str) -> Any:
    """Return the rows that pause now, each with the actor who last paused it."""
    audit = jobs.Audit
    last = sa.select(audit.actor).where(audit.action == "pause", audit.subject == kind + what.name)
    by = last.order_by(audit.id.desc()).limit(1).scalar_subquery().label("by")
    found = sa.select(what.name, what.paused_at, what.paused_until, what.pause_reason, by)
    return ask(session, jobs, found.where(is_paused(what)).order_by(what.name)).all()
