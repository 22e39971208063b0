"""The status of batches: their names, and how many of their jobs are in each state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.actions.batches import BatchCounts, UnknownBatch, count_all
from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.queries.batches import CountBatches
from sqla_jobs.queries.expressions import Tables


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """A batch, with the number of its jobs in each state."""

    id: int
    name: str
    created_at: datetime
    closed_at: datetime | None
    """When the batch was closed. Since then, jobs that wait for it can start, and no more jobs can join."""
    counts: BatchCounts

    @property
    def title(self) -> str:
        """The batch's name, or its id if it has none."""
        return self.name or f"batch {self.id}"

    @property
    def kinds(self) -> list[tuple[str, int]]:
        """The states that at least one job is in, each with its number of jobs."""
        names = ("succeeded", "failed", "cancelled", "running", "queued", "scheduled", "blocked")
        return [(name, number) for name in names if (number := getattr(self.counts, name))]


def read_batches(session: Session, jobs: Jobs[Any], most: int, *, below: int | None = None) -> list[BatchStatus]:
    """Return at most `most` batches, the newest first. With `below`, return only batches with a smaller id."""
    batch = jobs.Batch
    wanted = sa.select(batch.id, batch.name, batch.created_at, batch.closed_at).order_by(batch.id.desc()).limit(most)
    if below is not None:
        wanted = wanted.where(batch.id < below)
    return _with_counts(session, jobs, ask(session, jobs, wanted).all())


def read_batch(session: Session, jobs: Jobs[Any], batch_id: int) -> BatchStatus:
    """Return one batch. Raises `UnknownBatch`."""
    found = read_statuses(session, jobs, [batch_id])
    if not found:
        raise UnknownBatch(batch_id)
    return found[0]


def read_statuses(session: Session, jobs: Jobs[Any], ids: Sequence[int]) -> list[BatchStatus]:
    """Return these batches, in the order of their ids."""
    batch = jobs.Batch
    wanted = sa.select(batch.id, batch.name, batch.created_at, batch.closed_at).where(batch.id.in_(ids))
    return _with_counts(session, jobs, ask(session, jobs, wanted.order_by(batch.id)).all()) if ids else []


def _with_counts(session: Session, jobs: Jobs[Any], rows: Sequence[Any]) -> list[BatchStatus]:
    counts = count_all(CountBatches(Tables(jobs._models)), session, [row.id for row in rows])
    return [
        BatchStatus(row.id, row.name, row.created_at, row.closed_at, counts.get(row.id, BatchCounts())) for row in rows
    ]
