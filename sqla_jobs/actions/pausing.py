"""Pausing queues and tasks, in a transaction of the caller's."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import delete, func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from sqla_jobs.database.notify import after_commit
from sqla_jobs.models.mapping import Models
from sqla_jobs.tasks.enqueue import check_common
from sqla_jobs.tasks.registry import Tasks


def pause(session: Session, models: Models[Any], queue: str | None) -> None:
    """No worker claims from `queue` any more, once the caller commits; running jobs go on."""
    check_common({"queue": queue})
    _pause(session, models.Queue, [queue])


def resume(session: Session, models: Models[Any], queue: str | None) -> bool:
    """Workers claim from `queue` again, once the caller commits. False: it was not paused."""
    check_common({"queue": queue})
    row = models.Queue
    paused_at = session.scalar(delete(row).where(row.name == queue).returning(row.paused_at))
    after_commit(session, models.Job, models.channel, queue or "")
    return paused_at is not None


def pause_task(session: Session, models: Models[Any], tasks: Tasks[Any], task: object) -> str:
    """No worker claims jobs of `task`, under any of its names, once the caller commits; running jobs go on.

    Returns the task's name. Raises `UnknownTask`.
    """
    names = tasks.names(task)
    _pause(session, models.PausedTask, names)
    return names[0]


def resume_task(session: Session, models: Models[Any], tasks: Tasks[Any], task: object) -> bool:
    """Workers claim jobs of `task` again, once the caller commits. False: it was not paused.

    Raises `UnknownTask`, but for a paused one that no code declares any more.
    """
    paused = models.PausedTask
    is_forgotten = isinstance(task, str) and task not in tasks and session.get(paused, task) is not None
    names = (str(task),) if is_forgotten else tasks.names(task)
    resumed = session.scalars(delete(paused).where(paused.name.in_(names)).returning(paused.name)).all()
    after_commit(session, models.Job, models.channel, "")
    return bool(resumed)


def _pause(session: Session, paused: Any, names: Collection[Any]) -> None:
    """A second pause keeps the time of the first."""
    statement = insert(paused).values([{"name": name, "paused_at": func.clock_timestamp()} for name in names])
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["name"],
            set_={"paused_at": func.coalesce(paused.paused_at, statement.excluded.paused_at)},
        )
    )
