"""What keeps the jobs of whole tasks and queues from starting: pauses, and limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    all_,
    and_,
    any_,
    false,
    func,
    literal_column,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy.sql.selectable import SelectBase

from sqla_jobs.database.subscribers import LIMITS
from sqla_jobs.queries.expressions import Tables, array_of, message_of, unnest_text


def is_paused(row: Any) -> ColumnElement[bool]:
    """Whether a row, given as a class or its columns, pauses its queue or task now."""
    lasts = row.paused_until > func.statement_timestamp()
    return and_(row.paused_at.is_not(None), lasts.is_not(false()))


def paused(rows: Any) -> Select[Any]:
    """The names of the queues, or of the tasks, that are paused."""
    return select(rows.c.name).where(is_paused(rows.c))


def is_in_effect(limit: Any) -> ColumnElement[bool]:
    """Whether a row of limits, given likewise, limits anything. A row stays after its limit was taken back."""
    return or_(limit.running.is_not(None), limit.rate.is_not(None))


def is_of_operator(limit: Any) -> ColumnElement[bool]:
    """Whether such a row limits whole tasks or a queue and is an operator's alone: no code declares it."""
    return and_(limit.declared.is_(None), is_in_effect(limit), func.strpos(limit.gate, "=") == 0)


def limited_tasks(tables: Tables) -> Select[Any]:
    """The names of the tasks that any row of limits names."""
    limits = tables.limits
    return select(func.unnest(limits.c.tasks)).where(is_in_effect(limits.c))


def limited_queues(tables: Tables) -> Select[Any]:
    """The names of the queues that are limited themselves."""
    limits = tables.limits
    is_one = and_(limits.c.gate >= literal_column("'@'"), limits.c.gate < literal_column("'A'"))
    return select(func.substr(limits.c.gate, 2)).where(is_one, limits.c.running.is_not(None))


def freed_by(tables: Tables, changed: Any, is_given_up: ColumnElement[bool] | None = None) -> Iterator[Select[Any]]:
    """What workers are told of jobs, the rows of a CTE, that were taken from a process: they, or others, may start.

    A job that is queued may start; one that is not leaves a place behind its limits or in its queue.
    """
    given_up = true() if is_given_up is None else is_given_up
    queued = changed.c.state == literal_column("'queued'")
    yield select(message_of(changed)).where(given_up, queued)
    has_place = or_(changed.c.gates.is_not(None), changed.c.queue == any_(array_of(limited_queues(tables))))
    yield select(literal_column(f"'{LIMITS}'", Text)).where(given_up, has_place)


def claimable_tasks(tables: Tables) -> ColumnElement[Any]:
    """The parameter `tasks` without paused ones, as an array that is made once for the statement."""
    return _tasks_without(paused(tables.paused_tasks))


def unlimited_tasks(tables: Tables) -> ColumnElement[Any]:
    """The parameter `tasks` without those that are paused or limited."""
    return _tasks_without(union_all(paused(tables.paused_tasks), limited_tasks(tables)))


def _tasks_without(left_out: SelectBase) -> ColumnElement[Any]:
    known = unnest_text("known", task=("tasks", Text))
    return array_of(select(known.c.task).where(known.c.task != all_(array_of(left_out))))
