"""A page of jobs: from an index or, if no index helps, from a search in bounded steps and time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from sqla_jobs.actions.selection import Selection
from sqla_jobs.dashboard.data.paging import Order
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import JobState
from sqla_jobs.monitoring.finding import ask, readable
from sqla_jobs.monitoring.without_secrets import READ
from sqla_jobs.rules.wording import Count

SIZE = 50
COUNTED = 10_000
"""The maximum number of jobs that are counted in one state."""
_WINDOW = 20_000
"""The number of jobs that a search reads in one statement."""
_BUDGET = 1.0
"""Seconds after which a search ends with the jobs found so far."""
_MARGIN = timedelta(minutes=1)
"""The maximum time by which the order of ids may differ from that of creation times."""
_SMALL = 2000
"""A list leaves out a job's arguments if they take up more than this many bytes in the table."""


@dataclass(frozen=True)
class Found:
    """One page. `next_key` is the key from which the list continues; None if there is no more."""

    rows: Sequence[Any]
    next_key: Sequence[Any] | None
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


def count_states(session: Session, jobs: Jobs[Any]) -> list[tuple[str, Count]]:
    """Count the jobs of each state, at most `COUNTED` of each."""
    job: Any = jobs.Job
    of_index = {JobState.blocked: job.waits_for, JobState.scheduled: job.run_at, JobState.queued: job.queue}
    numbers: list[Any] = []
    for state in JobState:
        column = of_index.get(state, job.finished_at)
        some = sa.select(sa.literal(1)).where(job.state == state).order_by(column).limit(COUNTED + 1)
        if state == JobState.blocked:
            some = some.where(column.is_not(None))
        numbers.append(sa.select(sa.func.count()).select_from(some.subquery()).scalar_subquery())
    row = ask(session, jobs, sa.select(*numbers)).one()
    counts = zip(JobState, row, strict=True)
    return [(str(state), Count(min(number, COUNTED), is_least=number > COUNTED)) for state, number in counts]


def find(
    session: Session, jobs: Jobs[Any], selection: Selection, order: Order, after: Sequence[Any] | None = None
) -> Found:
    """Return the page after the key `after`, or the first page."""
    if selection == Selection(states=selection.states):
        rows = ask(session, jobs, _from(jobs, columns(jobs.Job), selection, order, after).limit(SIZE + 1)).all()
        return Found(rows[:SIZE], _key(order, rows[SIZE - 1]) if len(rows) > SIZE else None)
    return _search(session, jobs, selection, order, after)


def _key(order: Order, row: Any) -> list[Any]:
    return [getattr(row, column.key) for column in order.columns]


def _from(
    jobs: Jobs[Any], selected: Sequence[Any], selection: Selection, order: Order, start: Sequence[Any] | None
) -> Any:
    """Select the jobs in the state, after a key, in an index's order."""
    job: Any = jobs.Job
    query: Any = sa.select(*selected).order_by(*order.by())
    if selection.states:
        query = query.where(job.state == selection.states[0])
        if selection.states[0] == JobState.blocked:
            query = query.where(job.waits_for.is_not(None))  # like the predicate of the index
    return query if start is None else query.where(order.beyond(start))


def _search(
    session: Session, jobs: Jobs[Any], selection: Selection, order: Order, start: Sequence[Any] | None
) -> Found:
    """Search window by window until the page is full, no job is left, or time runs out."""
    until = time.monotonic() + _BUDGET
    found: list[Any] = []
    searched, bounds = 0, _bounds(session, jobs, selection, order)
    while True:
        ahead = _from(jobs, list(jobs.Job.__table__.c), selection, order, start).where(*bounds)
        window = aliased(jobs.Job, ahead.limit(_WINDOW).subquery())
        in_order = [getattr(window, column.key) for column in order.columns]
        hits = sa.select(*columns(window)).where(*selection.where(replace(jobs._models, Job=window)))
        hits = hits.order_by(*[one.desc() if order.is_descending else one.asc() for one in in_order])
        found += ask(session, jobs, hits.limit(SIZE + 1 - len(found)))
        if len(found) > SIZE:
            return Found(found[:SIZE], _key(order, found[SIZE - 1]), searched=searched)
        last = ahead.with_only_columns(*order.columns).offset(_WINDOW - 1).limit(1)
        end = ask(session, jobs, last).one_or_none()
        if end is None:
            return Found(found, None, searched=searched)
        start, searched = list(end), searched + _WINDOW
        if time.monotonic() > until:
            return Found(found, start, ran_out_of_time=True, searched=searched)


def _bounds(session: Session, jobs: Jobs[Any], selection: Selection, order: Order) -> list[Any]:
    """Return conditions on the order's columns that bound the creation time."""
    job: Any = jobs.Job
    bounds: list[Any] = []
    first, *_ = order.columns
    if first is job.id:
        if isinstance(selection.after, datetime):
            bounds.append(job.id >= _id_at(session, jobs, selection.after - _MARGIN))
        if isinstance(selection.before, datetime):
            bounds.append(job.id <= _id_at(session, jobs, selection.before + _MARGIN))
    elif first is job.finished_at and selection.after is not None:
        bounds.append(job.finished_at >= selection.after)
    if selection.batches:
        bounds.append(job.batch_id == selection.batches[0])
    if first is job.queue and selection.queues:
        bounds.append(job.queue == selection.queues[0])
    return bounds


def _id_at(session: Session, jobs: Jobs[Any], moment: datetime) -> int:
    """Bisect for the first job that was created at `moment` or later, and return an id near it."""
    job: Any = jobs.Job
    low, high = ask(session, jobs, sa.select(sa.func.min(job.id) - 1, sa.func.max(job.id) + 1)).one()
    while low is not None and high - low > 1:
        middle = (low + high) // 2
        query = (
            sa.select(job.id, readable(job.created_at)).where(job.id >= middle, job.id < high).order_by(job.id).limit(1)
        )
        row = ask(session, jobs, query).one_or_none()
        if row is None or row.created_at >= moment:
            high = middle
        else:
            low = row.id
    return high or 0


def columns(job: Any) -> list[Any]:
    """Return the columns for a row in a list. Large arguments are left out."""
    small = sa.case((sa.func.pg_column_size(job.args) <= _SMALL, sa.cast(job.args, sa.Text)))
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
        *map(readable, (job.created_at, job.started_at, job.finished_at, job.cancel_requested_at)),
        job.progress,
        job.waits_for,
        small.label("args_text"),
    ]


def last_errors(session: Session, jobs: Jobs[Any], job_ids: Sequence[int]) -> dict[int, tuple[str, str]]:
    """Return the error's type and the beginning of its message for each job whose last run has an error."""
    run: Any = jobs.Run
    last = sa.select(sa.func.max(run.id)).where(run.job_id.in_(job_ids)).group_by(run.job_id)
    said = sa.func.left(run.error, READ)
    query = sa.select(run.job_id, run.error_type, said).where(run.id.in_(last), run.error_type.is_not(None))
    return {row[0]: (row[1], row[2] or "") for row in ask(session, jobs, query)}
