"""Comparable names for the jobs and batches that a job was enqueued after."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.workflow_columns import BatchMixin


def named(given: Iterable[JobMixin | BatchMixin]) -> list[str]:
    """Return the names of these jobs and batches, sorted: `job 17 (fetch)` or `batch 3 (import 17)`."""
    return sorted(map(name_of, given))


def name_of(one: JobMixin | BatchMixin) -> str:
    """Return the name of a job or a batch."""
    if isinstance(one, BatchMixin):
        return f"batch {one.id} ({one.name})" if one.name else f"batch {one.id}"
    return f"job {one.id} ({one.task})"


def read_after(session: Session, models: Models[Any], job: JobMixin) -> list[str]:
    """Return the names of the jobs and batches that a job was enqueued after, sorted."""
    edge: Any = models.Edge
    of_job = edge.job_id == job.id
    jobs = sa.select(models.Job).join(edge, edge.needs_id == models.Job.id).where(of_job)
    batches = sa.select(models.Batch).join(edge, edge.batch_id == models.Batch.id).where(of_job)
    return named([*session.scalars(jobs), *session.scalars(batches)])


def read_batch(session: Session, models: Models[Any], job: JobMixin) -> str | None:
    """Return the name of a job's batch."""
    batch = None if job.batch_id is None else session.get(models.Batch, job.batch_id)
    return None if batch is None else name_of(batch)
