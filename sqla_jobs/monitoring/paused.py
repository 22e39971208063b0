"""Paused queues and tasks, with the actor who paused each, if the audit log has the entry."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import func, select
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
    rows: dict[str, Any] = {row.name: row for row in ask(session, jobs, _paused(jobs.PausedTask))}
    names = dict[str, list[str]]()
    for name in rows:
        own = jobs.tasks[name].name if name in jobs.tasks else name
        names.setdefault(own if own in rows else name, []).append(name)
    by = _pausers(session, jobs, [f"task {task}" for task in names])
    return [
        PausedTask(
            task,
            tuple(its),
            min(rows[name].paused_at for name in its),
            by.get(f"task {task}"),
            rows[its[0]].paused_until,
            rows[its[0]].pause_reason,
        )
        for task, its in names.items()
    ]


def names_of(paused: Iterable[PausedTask]) -> dict[str, str]:
    """Map each stored name of a paused task to the task."""
    return {name: one.task for one in paused for name in one.names}


class Pause(NamedTuple):
    """The pause of a queue: its start, actor, end and reason."""

    at: datetime | None
    by: str | None
    until: datetime | None
    reason: str | None


NOT_PAUSED = Pause(None, None, None, None)


def read_paused_queues(session: Session, jobs: Jobs[Any]) -> dict[str, Pause]:
    """Return the pause of each paused queue, by name."""
    rows: list[Any] = ask(session, jobs, _paused(jobs.Queue)).all()
    by = _pausers(session, jobs, [f"queue {row.name}" for row in rows])
    return {
        row.name: Pause(row.paused_at, by.get(f"queue {row.name}"), row.paused_until, row.pause_reason) for row in rows
    }


def _paused(what: Any) -> Any:
    found = select(what.name, what.paused_at, what.paused_until, what.pause_reason)
    return found.where(is_paused(what)).order_by(what.name)


def _pausers(session: Session, jobs: Jobs[Any], subjects: list[str]) -> dict[str, str]:
    """Return the actor who last paused each subject."""
    audit = jobs.Audit
    last = select(func.max(audit.id)).where(audit.action == "pause", audit.subject.in_(subjects))
    rows = ask(session, jobs, select(audit.subject, audit.actor).where(audit.id.in_(last.group_by(audit.subject))))
    return {row[0]: row[1] for row in rows}
