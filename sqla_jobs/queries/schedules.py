"""The clock's statements: due schedules, their jobs and their next ticks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Session

from sqla_jobs.models.columns import ScheduleMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import LIVE
from sqla_jobs.queries.expressions import Tables, is_among, message_of, unnest
from sqla_jobs.queries.unique_ticks import UNIQUE, Fired, UniqueTick, fire_unique
from sqla_jobs.queries.values import Among

_MOMENT = sa.DateTime(timezone=True)


class ScheduleQueries:
    """The clock's statements for one set of models. All but `hold` run on one of the library's own connections."""

    def __init__(self, models: Models[Any]) -> None:
        self._models = models
        self._tables = Tables(models)

    def due(self, connection: sa.Connection, which: Among, *, limit: int) -> list[Any]:
        """Lock the schedules that are due or changed, and return them with `is_changed` and the server's `now`."""
        return list(connection.execute(due(self._tables), {"limit": limit, **which.parameters()}).all())

    def still_live(self, connection: sa.Connection, schedule_ids: Sequence[int]) -> dict[int, int]:
        """Return the schedules with a job that has not ended, each with the id of its oldest such job."""
        found = connection.execute(still_live(self._tables), {"ids": list(schedule_ids)})
        return {row.schedule_id: row.oldest for row in found}

    def fire(self, connection: sa.Connection, ticks: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Insert a job for each tick that has none.

        Return each new job's id, the message about it, and its tick's schedule and time.
        """
        return list(connection.execute(fire(self._tables), _columns(ticks)).all())

    def fire_unique(
        self, connection: sa.Connection, ticks: Sequence[Mapping[str, Any]], unique: UniqueTick
    ) -> Fired | None:
        """Fire the ticks of one schedule, unless another job has the ticks' key.

        Return None if an open transaction has taken the key.
        """
        return fire_unique(connection, self._tables, fired(self._tables, UNIQUE), _columns(ticks), unique)

    def record(self, connection: sa.Connection, ticks: Sequence[Mapping[str, Any]]) -> None:
        """Store the outcomes of the ticks."""
        connection.execute(record(self._tables), _columns(ticks))

    def advance(self, connection: sa.Connection, plans: Sequence[Mapping[str, Any]]) -> None:
        """Store the new plan of each schedule."""
        connection.execute(advance(self._tables), _columns(plans))

    def due_in(self, connection: sa.Connection, which: Among) -> float:
        """Return the seconds until the next tick; 0 if a schedule was changed, infinite if there is no next tick."""
        found = connection.execute(due_in(self._tables), which.parameters()).scalar()
        return math.inf if found is None else float(found)

    def hold(self, session: Session, names: Sequence[str]) -> list[ScheduleMixin]:
        """Lock the schedules with these names against clocks and operators until commit, and return them."""
        return list(session.scalars(held(self._models), {"names": list(names)}))


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the rows as the statement's parameters: an array for each column."""
    return {f"all_{name}": [row[name] for row in rows] for name in rows[0]}


def due(tables: Tables) -> Any:
    """Return a query that locks the schedules that are due, changed or newly disabled, and adds the server's time.

    The query skips locked rows.
    """
    s = tables.schedules
    now = sa.func.clock_timestamp()
    is_due = sa.or_(_is_unplanned(s), sa.and_(s.c.enabled, s.c.next_run_at <= now))
    return (
        sa.select(*s.c, _is_changed(s).label("is_changed"), now.label("now"))
        .where(is_among(s), is_due)
        .order_by(s.c.next_run_at)
        .limit(sa.bindparam("limit"))
        .with_for_update(skip_locked=True, key_share=True)
    )


def still_live(tables: Tables) -> Any:
    """Return a query for the schedules with a job that has not ended, each with the id of its oldest such job."""
    jobs = tables.jobs
    return (
        sa.select(jobs.c.schedule_id, sa.func.min(jobs.c.id).label("oldest"))
        .where(
            jobs.c.schedule_id == sa.any_(sa.bindparam("ids", type_=sa.ARRAY(sa.BigInteger))), jobs.c.state.in_(LIVE)
        )
        .group_by(jobs.c.schedule_id)
    )


def fire(tables: Tables) -> Any:
    """Return a statement that inserts a job for each tick that has none, and returns the new jobs."""
    ticks = {"index_elements": ["schedule_id", "scheduled_for"], "index_where": sa.text("schedule_id IS NOT NULL")}
    return fired(tables, {}).on_conflict_do_nothing(**ticks)


def fired(tables: Tables, more: Mapping[str, sa.ColumnElement[Any]]) -> Any:
    """Return a statement that inserts a job for each tick, with `more` columns, and returns the new jobs."""
    jobs = tables.jobs
    tick = unnest(
        "tick",
        task=("all_task", sa.Text),
        queue=("all_queue", sa.Text),
        priority=("all_priority", sa.SmallInteger),
        args=("all_args", sa.Text),
        max_attempts=("all_max_attempts", sa.Integer),
        max_lost=("all_max_lost", sa.SmallInteger),
        on_failure=("all_on_failure", sa.Text),
        schedule_id=("all_schedule_id", sa.BigInteger),
        scheduled_for=("all_scheduled_for", _MOMENT),
        run_at=("all_run_at", _MOMENT),
        gates=("all_gates", sa.Text),
        ordered_by=("all_ordered_by", sa.Text),
    )
    later = tick.c.run_at > sa.func.clock_timestamp()
    columns = [
        *("task", "queue", "priority", "max_attempts", "max_lost"),
        *("schedule_id", "scheduled_for", "run_at", "ordered_by"),
    ]
    rows = sa.select(
        *(tick.c[name] for name in columns),
        sa.cast(tick.c.args, JSONB),
        sa.cast(tick.c.on_failure, JSONB),
        sa.cast(tick.c.gates, sa.ARRAY(sa.Text)),
        sa.case((later, "scheduled"), else_="queued"),
        *more.values(),
    ).order_by(tick.c.scheduled_for, tick.c.schedule_id)
    return (
        insert(jobs)
        .from_select([*columns, "args", "on_failure", "gates", "state", *more], rows)
        .returning(jobs.c.id, message_of(jobs).label("message"), jobs.c.schedule_id, jobs.c.scheduled_for)
    )


def record(tables: Tables) -> Any:
    """Return a statement that inserts ticks' outcomes: one row for each tick, or for a series of missed ticks."""
    came = unnest(
        "came",
        schedule_id=("all_schedule_id", sa.BigInteger),
        scheduled_for=("all_scheduled_for", _MOMENT),
        until=("all_until", _MOMENT),
        count=("all_count", sa.Integer),
        outcome=("all_outcome", sa.Text),
        job_id=("all_job_id", sa.BigInteger),
    )
    columns = ["schedule_id", "scheduled_for", "until", "count", "outcome", "job_id"]
    rows = sa.select(*(came.c[name] for name in columns)).order_by(came.c.scheduled_for, came.c.schedule_id)
    return insert(tables.ticks).from_select(columns, rows, include_defaults=False)


def advance(tables: Tables) -> Any:
    """Return an update of schedules' next tick, last fired tick, and reason for being disabled."""
    s = tables.schedules
    plan = unnest(
        "plan",
        id=("all_id", sa.BigInteger),
        planned_rule=("all_planned_rule", sa.Text),
        next_run_at=("all_next_run_at", _MOMENT),
        last_run_at=("all_last_run_at", _MOMENT),
        enabled=("all_enabled", sa.Boolean),
        disabled_reason=("all_disabled_reason", sa.Text),
    )
    return (
        sa.update(s)
        .where(s.c.id == plan.c.id)
        .values(
            planned_rule=plan.c.planned_rule,
            next_run_at=plan.c.next_run_at,
            last_run_at=sa.func.coalesce(plan.c.last_run_at, s.c.last_run_at),
            enabled=plan.c.enabled,
            disabled_reason=sa.func.coalesce(plan.c.disabled_reason, s.c.disabled_reason),
        )
    )


def _is_changed(s: Any) -> Any:
    """Return the condition that the next tick was computed for a different rule."""
    return s.c.planned_rule.is_distinct_from(s.c.cron.concat(" ").concat(s.c.timezone))


def _is_unplanned(s: Any) -> Any:
    """Return the condition that a clock has to compute the next tick or, for a disabled schedule, to forget it."""
    return sa.case(
        (s.c.enabled, sa.or_(_is_changed(s), s.c.next_run_at.is_(None))), else_=s.c.planned_rule.is_not(None)
    )


def due_in(tables: Tables) -> Any:
    """Return a query for the seconds until the next tick of any schedule; null if there is none."""
    s = tables.schedules
    now = sa.func.clock_timestamp()
    next_at = sa.func.min(sa.case((_is_unplanned(s), now), else_=s.c.next_run_at))
    return sa.select(sa.cast(sa.func.extract("epoch", next_at - now), sa.Double)).where(
        is_among(s), sa.or_(s.c.enabled, _is_unplanned(s))
    )


def held(models: Any) -> Any:
    """Return a query that locks the rows of some schedules, in the order of their names."""
    schedule = models.Schedule
    return (
        sa.select(schedule)
        .where(schedule.name == sa.any_(sa.bindparam("names", type_=sa.ARRAY(sa.Text))))
        .order_by(schedule.name)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
