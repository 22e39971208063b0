"""Conditions for pauses of whole tasks and queues, and for limits on them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    all_,
    and_,
    false,
    func,
    literal_column,
    or_,
    select,
    union_all,
)
from sqlalchemy.sql.selectable import SelectBase

from sqla_jobs.queries.expressions import Tables, array_of, unnest_text


def is_paused(row: Any) -> ColumnElement[bool]:
    """Return the condition that the row, given as a class or its columns, currently pauses its queue or task."""
    lasts = row.paused_until > func.statement_timestamp()
    return and_(row.paused_at.is_not(None), lasts.is_not(false()))


def paused(rows: Any) -> Select[Any]:
    """Return a query for the names of the paused queues, or of the paused tasks."""
    return select(rows.c.name).where(is_paused(rows.c))


def is_in_effect(limit: Any) -> ColumnElement[bool]:
    """Return the condition that a row of limits is in effect. A row remains after its limit has been cleared."""
    return or_(limit.running.is_not(None), limit.rate.is_not(None))


def is_of_operator(limit: Any) -> ColumnElement[bool]:
    """Return the condition that the row limits whole tasks or a queue and that only an operator has set it."""
    return and_(limit.declared.is_(None), is_in_effect(limit), func.strpos(limit.gate, "=") == 0)


def limited_tasks(tables: Tables) -> Select[Any]:
    """Return a query for the names of the tasks that any row of limits names."""
    limits = tables.limits
    return select(func.unnest(limits.c.tasks)).where(is_in_effect(limits.c))


def limited_queues(tables: Tables) -> Select[Any]:
    """Return a query for the names of the queues that have a limit of their own."""
    limits = tables.limits
    is_one = and_(limits.c.gate >= literal_column("'@'"), limits.c.gate < literal_column("'A'"))
    return select(func.substr(limits.c.gate, 2)).where(is_one, limits.c.running.is_not(None))


def claimable_tasks(tables: Tables) -> ColumnElement[Any]:
    """Return the parameter `tasks` without paused tasks, as an array that is computed once per statement."""
    return _tasks_without(paused(tables.paused_tasks))


def unlimited_tasks(tables: Tables) -> ColumnElement[Any]:
    """Return the parameter `tasks` without paused and limited tasks."""
    return _tasks_without(union_all(paused(tables.paused_tasks), limited_tasks(tables)))


def _tasks_without(left_out: SelectBase) -> ColumnElement[Any]:
    known = unnest_text("known", task=("tasks", Text))
    return array_of(select(known.c.task).where(known.c.task != all_(array_of(left_out))))
