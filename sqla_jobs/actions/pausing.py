"""Pauses of queues and tasks, in the caller's transaction."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from sqla_jobs.actions.audit import Changing
from sqla_jobs.database.notify import after_commit
from sqla_jobs.errors import ArgumentsError
from sqla_jobs.queries.restrictions import is_paused
from sqla_jobs.rules.value_checks import INSTANT, check_moment, check_queue, check_seconds, check_text

_REASON = 1_000
"""The maximum number of characters in a reason."""


def pause(
    it: Changing,
    queue: str | None = None,
    *,
    task: object = None,
    reason: str | None = None,
    until: datetime | timedelta | None = None,
) -> str:
    """Pause `queue`, or `task` under all of its names. Workers stop claiming the jobs once the caller commits.

    Running jobs are not interrupted. The pause ends by itself at `until`, a datetime or a timedelta from now, by the
    server's clock. A second pause replaces the reason and the end of the first. It keeps the start, unless the first
    pause has ended. Return a name for the pause, such as "queue mail". Raises `ArgumentsError` and `UnknownTask`.
    """
    paused, names = _named(it, queue, task)
    ends_at = _end(it.session, paused, until)
    values = {"paused_at": sa.func.clock_timestamp(), "paused_until": ends_at, "pause_reason": _checked(reason)}
    statement = insert(paused).values([{"name": name, **values} for name in names])
    given = statement.excluded
    it.session.execute(
        statement.on_conflict_do_update(
            index_elements=["name"],
            set_={
                "paused_at": sa.case((is_paused(paused), paused.paused_at), else_=given.paused_at),
                "paused_until": given.paused_until,
                "pause_reason": given.pause_reason,
            },
        )
    )
    after_commit(it.session, it.models.Job, it.models.channel, "")  # workers look again when the pause ends
    said = {"reason": reason, "until": until}
    subject = f"{'task' if queue is None else 'queue'} {names[0]}"
    it.record("pause", subject, **{name: str(value) for name, value in said.items() if value is not None})
    return subject


def resume(it: Changing, queue: str | None = None, *, task: object = None) -> bool:
    """End the pause of `queue` or `task`. Workers claim the jobs again once the caller commits.

    Return whether it was paused; if so, the audit log gets a line. Raises `ArgumentsError`, and `UnknownTask` unless
    the task is paused.
    """
    paused, names = _named(it, queue, task)
    resumed = it.session.scalars(sa.delete(paused).where(paused.name.in_(names)).returning(is_paused(paused))).all()
    after_commit(it.session, it.models.Job, it.models.channel, "")
    if any(resumed):
        it.record("resume", f"{'task' if queue is None else 'queue'} {names[0]}")
    return any(resumed)


def _named(it: Changing, queue: str | None, task: object) -> tuple[Any, tuple[Any, ...]]:
    """Return the model and the names of the rows that pause the queue or the task, the task's own name first."""
    if (queue is None) == (task is None):
        raise ArgumentsError("name either a queue or a task")
    if task is None:
        check_queue(queue)
        return it.models.Queue, (queue,)
    paused = it.models.PausedTask
    if isinstance(task, str):
        check_text("task", task)
    is_forgotten = isinstance(task, str) and task not in it.tasks and it.session.get(paused, task) is not None
    return paused, (task,) if is_forgotten else it.tasks.names(task)


def _checked(reason: object) -> str | None:
    if reason is None:
        return None
    if not isinstance(reason, str) or len(reason) > _REASON:
        raise ArgumentsError(f"reason must be text of at most {_REASON:,} characters, got {reason!r:.60}")
    return check_text("reason", reason) or None


def _end(session: Session, paused: Any, until: object) -> Any:
    """Return the time at which a pause ends. Raises `ArgumentsError` if the server's clock has passed that time."""
    now = sa.func.clock_timestamp()
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
    if not session.scalar(sa.select(now < until), bind_arguments={"mapper": paused}):
        raise ArgumentsError(f"until={until.isoformat()} has passed by the server's clock: give a later moment")
    return until
