"""Jobs for the ticks of a unique task."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from sqla_jobs.models.types import LIVE
from sqla_jobs.queries.expressions import Tables, seconds
from sqla_jobs.queries.unique import start_of_period

_PATIENCE = "100ms"
"""The maximum time that one schedule's tick waits for an open transaction that has taken its key."""
_NOT_FREE = "55P03"

UNIQUE: Mapping[str, sa.ColumnElement[Any]] = {
    "unique_key": sa.bindparam("unique_key", type_=sa.Text),
    "unique_period": start_of_period(seconds(sa.bindparam("per", type_=sa.Double))),
}
"""The additional columns of a unique job."""


class UniqueTick(NamedTuple):
    """The key that the ticks of one schedule take, and the length of the key's period in seconds."""

    unique_key: str
    per: float | None


class Fired(NamedTuple):
    """The result of firing the ticks of one schedule."""

    made: list[Any]
    """The new jobs, each with its id, the message about it, and its tick's schedule and time."""
    there_before: list[datetime]
    """The ticks that already had a job."""
    holder: int | None
    """The id of the job that has the key."""


def fire_unique(
    connection: sa.Connection, tables: Tables, fired: Any, ticks: Mapping[str, Any], unique: UniqueTick
) -> Fired | None:
    """Insert a job for each tick, unless another job has the ticks' key.

    Return None if an open transaction has taken the key.
    """
    connection.execute(sa.select(sa.func.set_config("lock_timeout", _PATIENCE, True)))
    jobs = tables.jobs
    of_ticks = sa.and_(
        jobs.c.schedule_id == ticks["all_schedule_id"][0], jobs.c.scheduled_for.in_(ticks["all_scheduled_for"])
    )
    there_before = list(connection.scalars(sa.select(jobs.c.scheduled_for).where(of_ticks)))
    try:
        with connection.begin_nested():
            made = list(connection.execute(fired.on_conflict_do_nothing(), {**ticks, **unique._asdict()}).all())
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != _NOT_FREE:
            raise
        return None
    has_key = sa.select(jobs.c.id).where(jobs.c.unique_key == unique.unique_key)
    holder = has_key.order_by(jobs.c.state.in_(LIVE).desc(), jobs.c.id.desc()).limit(1)
    return Fired(made, there_before, connection.scalar(holder))
