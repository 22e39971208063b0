"""The changes of many jobs: cancel, retry, delete, move and reschedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import BigInteger, any_, bindparam, func, or_, select, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session, aliased

from sqla_jobs.actions.bulk import BUSY, Apply, Change, Chosen, Conditions, Kind
from sqla_jobs.actions.jobs import (
    cancelled,
    check_move,
    check_run_at,
    given_place,
    has_arguments,
    moved,
    rescheduled,
    retried,
)
from sqla_jobs.database.notify import after_commit
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import ENDED, LIVE, WAITING, JobState
from sqla_jobs.queries.delete_jobs import Reference, Removal, ctid
from sqla_jobs.queries.expressions import array_of, locked, seconds
from sqla_jobs.queries.limits import keeps_others_waiting
from sqla_jobs.rules.checks import check_seconds


def _update(
    session: Session, models: Models[Any], chosen: Chosen, conditions: Conditions, values: Mapping[str, Any]
) -> int:
    job = models.Job
    free = locked(select(ctid.label("ctid")).select_from(job).where(job.id == any_(_IDS), *conditions), "free", of=job)
    statement = update(job).where(ctid == any_(array_of(select(free.c.ctid)))).values(values).returning(job.id)
    options = {"synchronize_session": False}
    return len(session.execute(statement, {"all_ids": sorted(chosen)}, execution_options=options).all())


_IDS = bindparam("all_ids", type_=ARRAY(BigInteger))


def _sets(values: Callable[[Models[Any]], Mapping[str, Any]]) -> Apply:
    """A change that sets these values."""

    def apply(session: Session, models: Models[Any], chosen: Chosen, conditions: Conditions) -> int:
        after_commit(session, models.Job, models.channel, "")  # the next jobs of their keys may start
        return _update(session, models, chosen, conditions, values(models))

    return apply


def _retry(session: Session, models: Models[Any], chosen: Chosen, conditions: Conditions) -> int:
    return _retry_as(session, models, chosen, conditions, retried(models))


def _retry_as(
    session: Session, models: Models[Any], chosen: Chosen, conditions: Conditions, values: Mapping[str, Any]
) -> int:
    """Of several that would have one unique key the newest; none whose key a live job has, or that was erased."""
    job, other = models.Job, aliased(models.Job)
    has_rival = select(other.id).where(
        other.unique_key == job.unique_key,
        other.id != job.id,
        or_(other.state.in_(LIVE), other.id.in_([*chosen]) & other.state.in_(ENDED) & (other.id > job.id)),
    )
    after_commit(session, job, models.channel, "")
    return _update(session, models, chosen, [*conditions, has_arguments(models), ~has_rival.exists()], values)


def _keeps_from_retry(session: Session, models: Models[Any], job_id: int) -> str | None:
    job, other = models.Job, aliased(models.Job)
    if session.scalar(select(job.id).where(job.id == job_id, ~has_arguments(models))) is not None:
        return "its arguments were erased; enqueue a new job instead"
    rivals = select(other.id).join(job, job.unique_key == other.unique_key)
    rival = session.scalar(rivals.where(job.id == job_id, other.id != job_id, other.state.in_(LIVE)))
    if rival is not None:
        return f"live job {rival} has its unique key; wait for that one, or cancel it"
    return None


def _keep_from_retry(session: Session, models: Models[Any], conditions: Conditions) -> list[tuple[int, str]]:
    job, other = models.Job, aliased(models.Job)
    rival = select(other.id).where(other.unique_key == job.unique_key, other.id != job.id, other.state.in_(LIVE))
    reasons = {
        "its arguments were erased; enqueue a new job instead": ~has_arguments(models),
        "a live job has its unique key; wait for that one, or cancel it": has_arguments(models) & rival.exists(),
    }
    return [
        (session.scalar(select(func.count()).select_from(job).where(*conditions, is_so)) or 0, said)
        for said, is_so in reasons.items()
    ]


def _keeps_from_delete(session: Session, models: Models[Any], job_id: int) -> str | None:
    keys = Removal(models).referring(session, job_id)
    return " ".join(map(_kept_by, keys)) or None


def _keep_from_delete(session: Session, models: Models[Any], conditions: Conditions) -> list[tuple[int, str]]:
    return [(number, _kept_by(key)) for key, number in Removal(models).kept(session, conditions)]


def _kept_by(key: Reference) -> str:
    return f"kept by rows of {key}. {key.remedy}"


def _delete(session: Session, models: Models[Any], chosen: Chosen, conditions: Conditions) -> int:
    removal = Removal(models)
    after_commit(session, models.Job, models.channel, "")  # the next jobs of their keys may start
    return removal.remove(session, [*chosen], conditions, removal.references(session))


_DELETABLE = (*ENDED, *WAITING)
CANCEL = Change(Kind("cancel", LIVE, LIVE, also=keeps_others_waiting), _sets(cancelled))
KILL = Change(CANCEL.kind, _sets(partial(cancelled, kill=True)), {"kill": True})
"""CANCEL, and the processes of those that do not stop are killed by their parents."""
RETRY = Change(
    Kind(
        "retry",
        (*ENDED, JobState.scheduled),
        (JobState.failed, JobState.cancelled),
        left_because=f"its arguments were erased, another job that lives, or is newer, has its unique key, or {BUSY}",
        obstacle=_keeps_from_retry,
        obstacles=_keep_from_retry,
    ),
    _retry,
)
DELETE = Change(
    Kind(
        "delete",
        _DELETABLE,
        _DELETABLE,
        left_because=f"rows of the application refer to it, or {BUSY}",
        obstacle=_keeps_from_delete,
        obstacles=_keep_from_delete,
    ),
    _delete,
)
MOVE = Kind("move", WAITING, WAITING)
RESCHEDULE = Kind("reschedule", WAITING, WAITING)


def retry_over(over: timedelta | float, number: int) -> Change:
    """RETRY, but for the time at which they are due: evenly spread over that time from now, the oldest first.

    `over` is a timedelta, or seconds; `number` is how many jobs there are. Raises `ArgumentsError`.
    """
    length = check_seconds("over", over)
    step = length / max(1, number)

    def apply(session: Session, models: Models[Any], chosen: Chosen, conditions: Conditions) -> int:
        place = min(chosen.values(), default=0) - 1 + func.array_position(_IDS, models.Job.id)
        due = {"state": "scheduled", "run_at": func.clock_timestamp() + seconds(place * step)}
        return _retry_as(session, models, chosen, conditions, retried(models) | due)

    return Change(RETRY.kind, apply, {"over": str(timedelta(seconds=length))})


def move_to(*, queue: str | None = None, priority: int | None = None) -> Change:
    """Waiting jobs go to the end of another queue or priority. Those of ordered keys keep their places there.

    Raises `ArgumentsError`.
    """
    check_move(queue, priority)

    def apply(session: Session, models: Models[Any], chosen: Chosen, conditions: Conditions) -> int:
        after_commit(session, models.Job, models.channel, "")
        return _update(session, models, chosen, conditions, moved(models, queue, priority))

    return Change(MOVE, apply, given_place(queue, priority))


def reschedule_to(run_at: datetime | timedelta) -> Change:
    """Waiting jobs wait until `run_at`, a moment or that long from now. Raises `ArgumentsError`."""
    check_run_at(run_at)

    def apply(session: Session, models: Models[Any], chosen: Chosen, conditions: Conditions) -> int:
        after_commit(session, models.Job, models.channel, "")
        return _update(session, models, chosen, conditions, rescheduled(run_at))

    return Change(
        RESCHEDULE, apply, {"run_at": f"in {run_at}" if isinstance(run_at, timedelta) else run_at.isoformat()}
    )
