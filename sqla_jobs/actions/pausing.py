"""Pausing queues and tasks, in a transaction of the caller's."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import case, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from sqla_jobs.database.notify import after_commit
from sqla_jobs.errors import ArgumentsError
from sqla_jobs.models.mapping import Models
from sqla_jobs.queries.restrictions import is_paused
from sqla_jobs.rules.checks import INSTANT, check_moment, check_seconds, check_text
from sqla_jobs.tasks.enqueue import check_common
from sqla_jobs.tasks.registry import Tasks

_REASON = 1_000
"""Characters of a reason."""
Until = datetime | timedelta | None


def pause(
    session: Session, models: Models[Any], queue: str | None, *, reason: str | None = None, until: Until = None
) -> None:
    """No worker claims from `queue` any more, once the caller commits; running jobs go on.

    By the server's clock it goes on by itself at `until`, or that long from now.
    """
    check_common({"queue": queue})
    _pause(session, models, models.Queue, [queue], reason, until)


def resume(session: Session, models: Models[Any], queue: str | None) -> bool:
    """Workers claim from `queue` again, once the caller commits. False: it was not paused."""
    check_common({"queue": queue})
    row = models.Queue
    was_paused = session.scalar(delete(row).where(row.name == queue).returning(is_paused(row)))
    after_commit(session, models.Job, models.channel, "")
    return bool(was_paused)


def pause_task(
    session: Session,
    models: Models[Any],
    tasks: Tasks[Any],
    task: object,
    *,
    reason: str | None = None,
    until: Until = None,
) -> str:
    """No worker claims jobs of `task`, under any of its names, once the caller commits; running jobs go on.

    Returns the task's name. Raises `UnknownTask`.
    """
    names = tasks.names(task)
    _pause(session, models, models.PausedTask, names, reason, until)
    return names[0]


def resume_task(session: Session, models: Models[Any], tasks: Tasks[Any], task: object) -> bool:
    """Workers claim jobs of `task` again, once the caller commits. False: it was not paused.

    Raises `UnknownTask`, but for a paused one that no code declares any more.
    """
    paused = models.PausedTask
    is_forgotten = isinstance(task, str) and task not in tasks and session.get(paused, task) is not None
    names = (str(task),) if is_forgotten else tasks.names(task)
    resumed = session.scalars(delete(paused).where(paused.name.in_(names)).returning(is_paused(paused))).all()
    after_commit(session, models.Job, models.channel, "")
    return any(resumed)


def _pause(
    session: Session, models: Models[Any], paused: Any, names: Collection[Any], reason: str | None, until: Until
) -> None:
    """A second pause keeps the time of the first, unless that one is over. Its reason and its end take their place."""
    ends_at = _end(session, paused, until)
    values = {"paused_at": func.clock_timestamp(), "paused_until": ends_at, "pause_reason": _checked(reason)}
    statement = insert(paused).values([{"name": name, **values} for name in names])
    given = statement.excluded
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["name"],
            set_={
                "paused_at": case((is_paused(paused), paused.paused_at), else_=given.paused_at),
                "paused_until": given.paused_until,
                "pause_reason": given.pause_reason,
            },
        )
    )
    after_commit(session, models.Job, models.channel, "")  # for who is to look when it ends


def _checked(reason: object) -> str | None:
    if reason is None:
        return None
    if not isinstance(reason, str) or len(reason) > _REASON:
        raise ArgumentsError(f"reason must be text of at most {_REASON:,} characters, got {reason!r:.60}")
    return check_text("reason", reason) or None


def _end(session: Session, paused: Any, until: object) -> Any:
    """The moment at which a pause ends. Raises `ArgumentsError` for one that the server's clock has passed."""
    now = func.clock_timestamp()
    if until is None:
        return None
    if isinstance(until, timedelta):
        return now + timedelta(seconds=check_seconds("until", until, least=INSTANT))
    if not isinstance(until, datetime) or until.utcoffset() is None:
        raise ArgumentsError(
            "until must be a datetime with a time zone, such as datetime.now(UTC) + timedelta(hours=1), "
            f"got {until!r:.60}"
        )
    check_moment("until", until)
    if not session.scalar(select(now < until), bind_arguments={"mapper": paused}):
        raise ArgumentsError(f"until={until.isoformat()} has passed by the server's clock: give a later moment")
    return until
