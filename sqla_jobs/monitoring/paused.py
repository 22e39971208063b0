"""Paused queues and tasks, with the actor who paused each, if the audit log has the entry."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.queries.restrictions import is_paused


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
