"""Conditions for pauses of whole tasks and queues, and for limits on them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.selectable import SelectBase

from sqla_jobs.queries.expressions import Tables, array_of, unnest_text


def is_paused(row: Any) -> sa.ColumnElement[bool]:
    """Return the condition that the row, given as a class or its columns, currently pauses its queue or task."""
    lasts = row.paused_until > sa.func.statement_timestamp()
    return sa.and_(row.paused_at.is_not(None), lasts.is_not(sa.false()))


def paused(rows: Any) -> sa.Select[Any]:
    """Return a query for the names of the paused queues, or of the paused tasks."""
    return sa.select(rows.c.name).where(is_paused(rows.c))


def is_in_effect(limit: Any) -> sa.ColumnElement[bool]:
    """Return the condition that a row of limits is in effect. A row remains after its limit has been cleared."""
    return sa.or_(limit.running.is_not(None), limit.rate.is_not(None))


def is_of_operator(limit: Any) -> sa.ColumnElement[bool]:
    """Return the condition that the row limits whole tasks or a queue and that only an operator has set it."""
    return sa.and_(limit.declared.is_(None), is_in_effect(limit), sa.func.strpos(limit.gate, "=") == 0)


def limited_tasks(tables: Tables) -> sa.Select[Any]:
    """Return a query for the names of the tasks that any row of limits names."""
    limits = tables.limits
    return sa.select(sa.func.unnest(limits.c.tasks)).where(is_in_effect(limits.c))


def limited_queues(tables: Tables) -> sa.Select[Any]:
    """Return a query for the names of the queues that have a limit of their own."""
    limits = tables.limits
    is_one = sa.and_(limits.c.gate >= sa.literal_column("'@'"), limits.c.gate < sa.literal_column("'A'"))
    return sa.select(sa.func.substr(limits.c.gate, 2)).where(is_one, limits.c.running.is_not(None))


def claimable_tasks(tables: Tables) -> sa.ColumnElement[Any]:
    """Return the parameter `tasks` without paused tasks, as an array that is computed once per statement."""
    return _tasks_without(paused(tables.paused_tasks))


def unlimited_tasks(tables: Tables) -> sa.ColumnElement[Any]:
    """Return the parameter `tasks` without paused and limited tasks."""
    return _tasks_without(sa.union_all(paused(tables.paused_tasks), limited_tasks(tables)))


def _tasks_without(left_out: SelectBase) -> sa.ColumnElement[Any]:
    known = unnest_text("known", task=("tasks", sa.Text))
    return array_of(sa.select(known.c.task).where(known.c.task != sa.all_(array_of(left_out))))
