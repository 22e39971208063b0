"""The values that go into the statements and come out of them, and the pieces they are made of."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    ColumnElement,
    Double,
    Select,
    Sequence,
    and_,
    bindparam,
    cast,
    column,
    func,
    inspect,
    select,
)
from sqlalchemy.sql.selectable import TableValuedAlias

from sqla_jobs.mapping import Models
from sqla_jobs.outcomes import Outcome

PRIORITIES = range(-10, 11)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one process to finish one attempt at a job."""

    job_id: int
    run_id: int
    process_id: uuid.UUID


@dataclass(frozen=True, slots=True)
class Claimed(Lease):
    """A job this process holds. `args` is JSON text; `elapsed` seconds since its first start."""

    task: str
    queue: str
    priority: int
    position: int
    args: str
    attempt: int
    max_attempts: int
    elapsed: float
    scheduled_for: datetime | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of one attempt. Both times are seconds after the claim, by this process's monotonic clock."""

    lease: Lease
    outcome: Outcome
    started: float = 0.0
    finished: float = 0.0


@dataclass(frozen=True, slots=True)
class Probe:
    """Where claiming looks: jobs of one queue and priority, of a position above `floor`."""

    queue: str
    priority: int
    floor: int = -1


class Tables:
    """The tables behind the mapped classes; their columns are looked up by name."""

    def __init__(self, models: Models[Any]) -> None:
        self.jobs = _table(models.Job)
        self.runs = _table(models.Run)
        self.processes = _table(models.Process)
        self.queues = _table(models.Queue)
        self.schedules = _table(models.Schedule)
        self.positions: Sequence = models.positions
        self.run_ids: Sequence = models.run_ids


def _table(model: type[Any]) -> Any:
    return inspect(model).local_table


def unnest(name: str, **columns: tuple[str, Any]) -> TableValuedAlias:
    """Arrays bound as parameters, side by side as the columns of a table: column=(parameter, type)."""
    arrays = [bindparam(parameter, type_=ARRAY(kind)) for parameter, kind in columns.values()]
    named = [column(column_name, kind) for column_name, (_, kind) in columns.items()]
    return func.unnest(*arrays).table_valued(*named, name=name).render_derived()


def leased(jobs: Any, given: Any) -> ColumnElement[bool]:
    """The fence: that a lease in `given` still stands."""
    return and_(
        jobs.c.id == given.c.job_id,
        jobs.c.current_run_id == given.c.run_id,
        jobs.c.process_id == given.c.process_id,
        jobs.c.state == "running",
    )


def losses(tables: Tables) -> Any:
    """How often the job at hand has lost its process before."""
    runs = tables.runs
    return (
        select(func.count())
        .where(runs.c.job_id == tables.jobs.c.id, runs.c.outcome == "lost")
        .correlate(tables.jobs)
        .scalar_subquery()
    )


def loss_backoff(tables: Tables) -> ColumnElement[Any]:
    """The wait after a loss that is not the first or second, by the library's own backoff (retry.BACKOFF)."""
    return func.least(func.power(2.0, losses(tables) - 1), 3600.0) * (0.75 + func.random() / 2)


def seconds(value: Any) -> ColumnElement[Any]:
    """A number of seconds as an interval."""
    return func.make_interval(0, 0, 0, 0, 0, 0, cast(value, Double))


def locked(rows: Any, name: str, *, of: Any, skip: bool = True) -> CTE:
    """`rows`, locked once and then used as a table.

    NO KEY UPDATE, so that a foreign key to a job, checked by somebody's open transaction, hides no job;
    MATERIALIZED, so that the planner cannot lock more rows than the limit lets through.
    """
    chosen: Select[Any] = rows.with_for_update(skip_locked=skip, key_share=True, of=of)
    return chosen.cte(name).prefix_with("MATERIALIZED")
