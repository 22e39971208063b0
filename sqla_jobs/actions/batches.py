"""Batches: the number of their jobs in each state."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session

from sqla_jobs.actions.audit import Changing
from sqla_jobs.errors import ArgumentsError, UnknownJob
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.row import id_in
from sqla_jobs.models.types import ENDED, LIVE
from sqla_jobs.models.workflow_columns import BatchMixin
from sqla_jobs.queries.batches import CountBatches
from sqla_jobs.queries.edges import MarkDeleted
from sqla_jobs.queries.expressions import Tables
from sqla_jobs.queries.statement import SqlConnection


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """The number of a batch's jobs in each state."""

    blocked: int = 0
    """Jobs that wait for other jobs."""
    scheduled: int = 0
    """Jobs that wait for their time."""
    queued: int = 0
    """Jobs that wait for a worker."""
    running: int = 0
    """Jobs that are running."""
    succeeded: int = 0
    """Jobs that have succeeded."""
    failed: int = 0
    """Jobs that have failed for good."""
    cancelled: int = 0
    """Jobs that were cancelled."""
    age: float = field(default=0.0, compare=False)
    """Seconds since the batch was created, by the server's clock."""

    @property
    def total(self) -> int:
        """The number of jobs in the batch."""
        return self.ended + sum(int(getattr(self, state)) for state in LIVE)

    @property
    def ended(self) -> int:
        """The number of jobs that have ended."""
        return sum(int(getattr(self, state)) for state in ENDED)

    @property
    def has_ended(self) -> bool:
        """True if all jobs have ended, or if there are none."""
        return self.ended == self.total

    @property
    def progress(self) -> float:
        """The share of the jobs that have ended, from 0 to 1; 1 for an empty batch."""
        return self.ended / self.total if self.total else 1.0

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until the last job ends, at the average rate so far; None before any job has ended."""
        return self.age * (self.total - self.ended) / self.ended if self.ended else None


def count(session: Session, models: Models[Any], batch: BatchMixin) -> BatchCounts:
    """Count a batch's jobs by state, with one index. Raises `ArgumentsError` for an unsaved batch."""
    batch_id = id_of(session, models, batch)
    return count_all(CountBatches(Tables(models)), session, [batch_id]).get(batch_id, BatchCounts())


def count_all(read: CountBatches, connection: SqlConnection, ids: Collection[int]) -> dict[int, BatchCounts]:
    """Return the counts of several batches, by id. Batches that do not exist are left out."""
    found = read(connection, ids) if ids else {}
    return {one.batch_id: BatchCounts(**one.states, age=one.age) for one in found.values()}


class UnknownBatch(UnknownJob):
    """There is no batch with that id."""

    def __init__(self, batch_id: int) -> None:
        super().__init__(f"there is no batch {batch_id}; it may have been pruned")


def get(it: Changing, batch_id: int) -> BatchMixin:
    """Return a batch by its id. Raises `UnknownBatch`."""
    batch = it.session.get(it.models.Batch, batch_id)
    if batch is None:
        raise UnknownBatch(batch_id)
    return batch


def id_of(session: Session, models: Models[Any], batch: object) -> int:
    """Return a batch's id. Flush the session if the batch is pending."""
    if not isinstance(batch, models.Batch):
        raise ArgumentsError(f"{batch!r:.60} is not a batch of this Jobs")
    if (batch_id := id_in(session, batch)) is None:
        raise ArgumentsError("the batch is not in the database: make it by jobs.batch(session)")
    return batch_id


def saved_id(batch: BatchMixin) -> int:
    """Return the id of a batch that the database has. Raises `ArgumentsError` for any other object."""
    batch_id = id_in(None, batch) if isinstance(batch, BatchMixin) else None
    if batch_id is None:
        raise ArgumentsError(f"{batch!r:.60} is not a batch that the database has: flush the session first")
    return batch_id


def watch_deletions(models: Models[Any]) -> None:
    """Record the deletion in the database whenever a session deletes a job object of a batch."""
    mark = MarkDeleted(Tables(models))

    def deleted(mapper: object, connection: sa.Connection, job: JobMixin) -> None:
        if job.batch_id is not None:
            mark(connection, [job.batch_id])

    event.listen(models.Job, "before_delete", deleted)  # afterwards batch_id could no longer be loaded
