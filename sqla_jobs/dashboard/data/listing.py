"""A page of jobs: from an index or, if there are other filters, from a look at recent jobs.

A page begins after a row, by its id: it does not shift while rows come, and costs the same at any depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from sqla_jobs.actions.selection import Selection
from sqla_jobs.errors import JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import JobState
from sqla_jobs.monitoring.finding import ask, readable
from sqla_jobs.monitoring.without_secrets import READ
from sqla_jobs.rules.value_checks import read_id
from sqla_jobs.rules.wording import Count

SIZE = 50
COUNTED = 10_000
"""The maximum number of jobs that are counted in one state."""
RECENT = 50_000
"""The number of jobs that a page with filters looks at."""
_SMALL = 2000
"""A list leaves out a job's arguments if they take up more than this many bytes in the table."""


@dataclass(frozen=True)
class Found:
    """One page. `next_id` is the id of the job after which the list continues; None if there is no more."""

    rows: Sequence[Any]
    next_id: int | None
    is_partial: bool = False
    """True if the page has looked at `RECENT` jobs, and not at the others."""


class BadCursor(JobsError):
    """A URL without a valid position in the list."""


def read_after(text: str | None) -> int | None:
    """Return the id after which a page begins; None for the first page. Raises `BadCursor`."""
    try:
        return read_id(text) if text else None
    except ValueError:
        raise BadCursor(f"after={text!r:.40} is not an id: start from the first page") from None


@dataclass(frozen=True)
class Order:
    """An order that an index provides. The last of `columns` is the id, and all have the same direction."""

    columns: tuple[Any, ...]
    is_descending: bool = False

    def by(self) -> list[Any]:
        """Return the columns for ORDER BY."""
        return [column.desc() if self.is_descending else column.asc() for column in self.columns]

    def beyond(self, session: Session, jobs: Jobs[Any], after: int) -> sa.ColumnElement[bool]:
        """Return the condition for rows after the row with the id `after`. Raises `BadCursor` if that row is gone.

        Rows without a value in the first column come first in a descending order, and last in an ascending one. In an
        ascending order, only the first page can show such rows, since one index condition cannot express both cases.
        """
        first, *rest = self.columns
        key: Any = ask(session, jobs, sa.select(*map(readable, self.columns)).where(self.columns[-1] == after)).first()
        if key is None:
            raise BadCursor(f"row {after}, after which this page begins, is gone: start from the first page")
        if key[0] is None:
            same = sa.and_(first.is_(None), self._past(rest, key[1:]))
            return sa.or_(same, first.is_not(None)) if self.is_descending else same
        bound = sa.literal(key[0], first.type)  # redundant, but it lets the server use the index
        return sa.and_(self._past(self.columns, key), first <= bound if self.is_descending else first >= bound)

    def _past(self, columns: Sequence[Any], key: Sequence[Any]) -> sa.ColumnElement[bool]:
        given = sa.tuple_(*(sa.literal(value, column.type) for value, column in zip(key, columns, strict=True)))
        return sa.tuple_(*columns) < given if self.is_descending else sa.tuple_(*columns) > given


def order_of(jobs: Jobs[Any], state: JobState | None) -> Order:
    """Return the order in which an index lists the jobs in that state."""
    job: Any = jobs.Job
    match state:
        case None:
            return Order((job.id,), is_descending=True)
        case JobState.blocked:
            return Order((job.waits_for, job.id))
        case JobState.scheduled:
            return Order((job.run_at, job.id))
        case JobState.queued:
            return Order((job.queue, job.priority, job.position, job.id))
        case JobState.running:
            return Order((job.started_at, job.id))
        case _:
            return Order((job.finished_at, job.id), is_descending=True)


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


def find(session: Session, jobs: Jobs[Any], selection: Selection, order: Order, after: int | None = None) -> Found:
    """Return the page after the job with the id `after`, or the first page."""
    job: Any = jobs.Job
    some: Any = sa.select(*job.__table__.c).order_by(*order.by())
    if after is not None:
        some = some.where(order.beyond(session, jobs, after))
    if selection.states:
        some = some.where(job.state == selection.states[0])
        if selection.states[0] == JobState.blocked:
            some = some.where(job.waits_for.is_not(None))  # like the predicate of the index
    if selection == Selection(states=selection.states):
        rows = ask(session, jobs, some.with_only_columns(*columns(job)).limit(SIZE + 1)).all()
        return Found(rows[:SIZE], rows[SIZE - 1].id if len(rows) > SIZE else None)
    if selection.batches:
        some = some.where(job.batch_id.in_(selection.batches))  # its index leads to old jobs, too
    recent = aliased(job, some.limit(RECENT).subquery())
    in_order = [getattr(recent, column.key) for column in order.columns]
    hits = sa.select(*columns(recent)).where(*selection.where(replace(jobs._models, Job=recent)))
    hits = hits.order_by(*[one.desc() if order.is_descending else one.asc() for one in in_order])
    rows = ask(session, jobs, hits.limit(SIZE + 1)).all()
    if len(rows) > SIZE:
        return Found(rows[:SIZE], rows[SIZE - 1].id)
    last = ask(session, jobs, some.with_only_columns(job.id).offset(RECENT - 1).limit(1)).scalar()
    return Found(rows, last, is_partial=last is not None)


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
