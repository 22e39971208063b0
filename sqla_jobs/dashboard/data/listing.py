"""A page of jobs: from an index or, if no index helps, from a search in bounded steps and time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Text, case, cast, func, select
from sqlalchemy.orm import Session, aliased

from sqla_jobs.actions.selection import Selection
from sqla_jobs.dashboard.data.paging import Order
from sqla_jobs.dashboard.shown import READ
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import JobState

SIZE = 50
_WINDOWS = (5_000, 50_000)
"""The numbers of jobs that a search reads in its first statement and in each later one."""
_BUDGET = 1.0
"""Seconds after which a search ends with the jobs found so far."""
_MARGIN = timedelta(minutes=1)
"""The maximum time by which the order of ids may differ from that of creation times."""
_SMALL = 2000
"""A list leaves out a job's arguments if they take up more than this many bytes in the table."""


@dataclass(frozen=True)
class Found:
    """One page, with the keys of its neighbors; None for a neighbor that does not exist."""

    rows: Sequence[Any]
    next_key: Sequence[Any] | None
    previous_key: Sequence[Any] | None
    ran_out_of_time: bool = False
    searched: int = 0


def orders(jobs: Jobs[Any], state: JobState | None) -> list[Order]:
    """Return the orders in which an index lists jobs in that state; the first is the default."""
    job: Any = jobs.Job
    columns: tuple[Any, ...]
    match state:
        case None:
            return [Order("newest", "newest first", (job.id,), True), Order("oldest", "oldest first", (job.id,))]
        case JobState.blocked:
            columns = (job.waits_for, job.id)
            said = "the job that it waits for"
            return [Order("awaited", f"by {said}", columns), Order("newest", f"by {said}, newest first", columns, True)]
        case JobState.scheduled:
            columns = (job.run_at, job.id)
            return [Order("soonest", "next first", columns), Order("latest", "last first", columns, True)]
        case JobState.queued:
            columns = (job.queue, job.priority, job.position, job.id)
            return [Order("next", "next to run first", columns), Order("last", "last to run first", columns, True)]
        case JobState.running:
            columns = (job.started_at, job.id)
            return [Order("longest", "longest first", columns), Order("started", "newest first", columns, True)]
        case _:
            columns = (job.finished_at, job.id)
            return [Order("ended", "last ended first", columns, True), Order("first", "first ended first", columns)]


def find(
    session: Session,
    jobs: Jobs[Any],
    selection: Selection,
    order: Order,
    *,
    after: Sequence[Any] | None = None,
    before: Sequence[Any] | None = None,
) -> Found:
    """Return the page after the key `after` or before the key `before`; without either, the first page."""
    backwards = before is not None
    start = before if backwards else after
    if _is_indexed(selection):
        query = _from(jobs, selection, order, start, backwards=backwards)
        rows = _run(session, jobs, query.limit(SIZE + 1))
        unfinished = None
        searched = 0
    else:
        rows, unfinished, searched = _search(session, jobs, selection, order, start, backwards=backwards)
    is_more = len(rows) > SIZE
    rows = rows[:SIZE]
    beyond = _key(order, rows[-1]) if is_more else unfinished
    if backwards:
        rows = rows[::-1]
        return Found(rows, before and _edge(order, rows, -1, before), beyond, unfinished is not None, searched)
    return Found(rows, beyond, after and _edge(order, rows, 0, after), unfinished is not None, searched)


def _edge(order: Order, rows: Sequence[Any], place: int, otherwise: Sequence[Any]) -> Sequence[Any]:
    return _key(order, rows[place]) if rows else otherwise


def _key(order: Order, row: Any) -> list[Any]:
    return [getattr(row, column.key) for column in order.columns]


def _is_indexed(selection: Selection) -> bool:
    return selection == Selection(states=selection.states)


def _from(jobs: Jobs[Any], selection: Selection, order: Order, start: Sequence[Any] | None, *, backwards: bool) -> Any:
    """Select the jobs in the state, starting at a key, in an index's order."""
    job: Any = jobs.Job
    query: Any = select(*columns(job)).order_by(*order.by(backwards=backwards))
    if selection.states:
        query = query.where(job.state == selection.states[0])
        if selection.states[0] == JobState.blocked:
            query = query.where(job.waits_for.is_not(None))  # like the predicate of the index
    if start is not None:
        query = query.where(order.beyond(start, backwards=backwards))
    return query


def _search(
    session: Session,
    jobs: Jobs[Any],
    selection: Selection,
    order: Order,
    start: Sequence[Any] | None,
    *,
    backwards: bool,
) -> tuple[list[Any], Sequence[Any] | None, int]:
    """Search window by window until the page is full, no job is left, or time runs out.

    Return the rows, the key where time ran out, and the number of jobs searched.
    """
    until = time.monotonic() + _BUDGET
    found: list[Any] = []
    searched, bounds = 0, _bounds(session, jobs, selection, order)
    windows = iter(_WINDOWS)
    size = 0
    while len(found) <= SIZE:
        size = next(windows, size)
        ahead = _from(jobs, selection, order, start, backwards=backwards).where(*bounds)
        ahead = ahead.add_columns(*[column for column in _needed(jobs.Job) if column.key not in _keys(ahead)])
        window = aliased(jobs.Job, ahead.limit(size).subquery())
        models = replace(jobs.models, Job=window)
        named = [column.key for column in order.columns]
        ordered = [getattr(window, name) for name in named]
        ordered = [one.desc() if order.is_descending != backwards else one.asc() for one in ordered]
        hits = select(*columns(window)).where(*selection.where(models)).order_by(*ordered)
        found += _run(session, jobs, hits.limit(SIZE + 1 - len(found)))
        if len(found) > SIZE:
            break
        last = _from(jobs, selection, order, start, backwards=backwards).where(*bounds)
        last = last.with_only_columns(*order.columns).offset(size - 1).limit(1)
        end = _run(session, jobs, last)
        if not end:
            return found, None, searched
        start, searched = list(end[0]), searched + size
        if time.monotonic() > until:
            return found, start, searched
    return found, None, searched


def _bounds(session: Session, jobs: Jobs[Any], selection: Selection, order: Order) -> list[Any]:
    """Return conditions on the order's columns that bound the creation time."""
    job: Any = jobs.Job
    bounds: list[Any] = []
    first, *_ = order.columns
    if first is job.id:
        if isinstance(selection.after, datetime):
            low, _ = where_since(session, jobs, job.id, job.created_at, selection.after - _MARGIN)
            bounds.append(job.id >= low)
        if isinstance(selection.before, datetime):
            _, high = where_since(session, jobs, job.id, job.created_at, selection.before + _MARGIN)
            bounds.append(job.id <= high)
    elif first is job.finished_at and selection.after is not None:
        bounds.append(job.finished_at >= selection.after)
    if selection.batches:
        bounds.append(job.batch_id == selection.batches[0])
    if first is job.queue and selection.queues:
        bounds.append(job.queue == selection.queues[0])
    return bounds


def where_since(session: Session, jobs: Jobs[Any], id_column: Any, column: Any, moment: datetime) -> tuple[int, int]:
    """Bisect for the first row whose `column` is `moment` or later, and return the ids around it.

    Ids and `column` must increase together.
    """
    on_jobs = {"mapper": jobs.Job}
    ends = session.execute(select(func.min(id_column), func.max(id_column)), bind_arguments=on_jobs).one()
    if ends[0] is None:
        return 0, 0
    low, high = int(ends[0]), int(ends[1]) + 1
    while high - low > 64:
        middle = (low + high) // 2
        query = select(id_column, column).where(id_column >= middle, id_column < high).order_by(id_column).limit(1)
        row = session.execute(query, bind_arguments=on_jobs).one_or_none()
        if row is None or row[1] >= moment:
            high = middle
        else:
            low = int(row[0])
    return low, high


def columns(job: Any) -> list[Any]:
    """Return the columns for a row in a list. Large arguments are left out."""
    small = case((func.pg_column_size(job.args) <= _SMALL, cast(job.args, Text)))
    return [
        job.id,
        job.task,
        job.queue,
        job.priority,
        job.position,
        job.state,
        job.attempt,
        job.max_attempts,
        job.run_at,
        job.created_at,
        job.started_at,
        job.finished_at,
        job.cancel_requested_at,
        job.progress,
        job.waits_for,
        small.label("args_text"),
    ]


def _needed(job: Any) -> list[Any]:
    return [job.args, job.schedule_id, job.unique_key, job.batch_id]


def _keys(query: Any) -> set[str]:
    return {str(column.key) for column in query.selected_columns}


def _run(session: Session, jobs: Jobs[Any], query: Any) -> list[Any]:
    return list(session.execute(query, bind_arguments={"mapper": jobs.Job}).all())


def last_errors(session: Session, jobs: Jobs[Any], job_ids: Sequence[int]) -> dict[int, tuple[str, str]]:
    """Return the error's type and the beginning of its message for each job whose last run has an error."""
    run: Any = jobs.Run
    last = select(func.max(run.id)).where(run.job_id.in_(job_ids)).group_by(run.job_id)
    said = func.left(run.error, READ)
    query = select(run.job_id, run.error_type, said).where(run.id.in_(last), run.error_type.is_not(None))
    return {row[0]: (row[1], row[2] or "") for row in session.execute(query, bind_arguments={"mapper": run})}
