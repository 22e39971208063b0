"""Store the schedules that code declares, without overwriting an operator's changes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from sqla_jobs.models.columns import ScheduleMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.queries.schedules import ScheduleQueries
from sqla_jobs.tasks.schedule import Declared
from sqla_jobs.tasks.sessions import AnySession, plain_session

if TYPE_CHECKING:
    from sqla_jobs.jobs import Jobs

UNDECLARED_FOR = timedelta(hours=24)
"""A schedule is disabled once no process has declared it for this long."""


def sync_schedules(session: AnySession, jobs: Jobs[Any], *, reset: bool = False, keep: bool = False) -> list[str]:
    """Store the schedules that code declares, and disable those that it no longer declares, in your transaction.

    - `jobs`: the `Jobs`, whose tasks are imported first.
    - `reset`: True undoes the changes of operators.
    - `keep`: True disables nothing, for example because another application declares schedules in these tables.

    Returns the names of the disabled schedules. Schedules that operators added are left alone.
    """
    own = plain_session(session, "sync_schedules(session, jobs)")
    jobs.tasks.load()
    sync(own, jobs._models, jobs.schedules, reset=reset)
    return [] if keep else retire(own, jobs._models, jobs.schedules, timedelta(0))


def sync(session: Session, models: Models[Any], declared: Mapping[str, Declared], *, reset: bool = False) -> None:
    """Insert new schedules and update those whose declaration changed, in the caller's transaction.

    Keep a value that an operator set after code last declared it, unless `reset` is true. Enable a schedule
    again if it was disabled because no code declared it.
    """
    wanted = {name: declared[name].row() for name in sorted(declared)}
    if not wanted:
        return
    missing = insert(models.Schedule).on_conflict_do_nothing(index_elements=["name"])
    for name, row in wanted.items():
        values = {
            "name": name,
            **row,
            "declared": True,
            "declared_values": row,
            "declared_at": sa.func.clock_timestamp(),
        }
        session.execute(missing.values(values))
    for schedule in ScheduleQueries(models).hold(session, list(wanted)):
        _bring_up_to_date(schedule, wanted[schedule.name], reset=reset)
    session.flush()
    still_declared(session, models, declared)


def _bring_up_to_date(schedule: ScheduleMixin, row: dict[str, Any], *, reset: bool) -> None:
    before = (
        schedule.declared_values if schedule.declared_values is not None else row
    )  # a schedule made by an operator has no declared values
    if schedule.retired_at is not None:
        schedule.retired_at, schedule.disabled_reason, schedule.enabled = None, None, before["enabled"]
    for column, value in row.items():
        if reset or getattr(schedule, column) == before[column]:
            setattr(schedule, column, value)
    schedule.declared_values, schedule.declared = row, True


def still_declared(session: Session, models: Models[Any], declared: Mapping[str, Declared]) -> None:
    """Record that this process's code declares these schedules."""
    schedule = models.Schedule
    session.execute(
        sa.update(schedule)
        .where(schedule.name.in_(list(declared)), schedule.retired_at.is_(None))
        .values(declared_at=sa.func.clock_timestamp())
        .execution_options(synchronize_session=False)
    )


def retire(session: Session, models: Models[Any], declared: Mapping[str, Declared], after: timedelta) -> list[str]:
    """Disable the schedules that code once declared, but that no process has declared for the time `after`.

    Return the names of the disabled schedules.
    """
    schedule = models.Schedule
    why = sa.func.concat("no code declares it any more; the last did at ", schedule.declared_at)
    return list(
        session.scalars(
            sa.update(schedule)
            .where(
                schedule.declared,
                schedule.enabled,
                schedule.name.not_in(list(declared)),
                schedule.declared_at <= sa.func.clock_timestamp() - after,
            )
            .values(enabled=False, disabled_reason=why, retired_at=sa.func.clock_timestamp())
            .returning(schedule.name)
            .execution_options(synchronize_session=False)
        )
    )
