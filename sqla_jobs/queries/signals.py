"""The sender's side of signals: it stores the signal and wakes the job, whose row it has locked before.

A run that is about to wait locks the same row. Each side takes the lock first and reads afterwards, so neither misses
a write of the other.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import StepKind


def store(session: Session, models: Models[Any], job_id: int, name: str, payload: str) -> None:
    """Store a signal, with its payload as JSON text."""
    stored = sa.cast(sa.literal(payload, sa.Text), JSONB)
    session.execute(sa.insert(models.Signal).values(job_id=job_id, name=name, payload=stored))


def wake(session: Session, models: Models[Any], job_id: int, name: str) -> bool:
    """Queue a job whose row is locked, if it waits for a signal of this name. Return whether the job was queued."""
    job, step = models.Job, models.Step
    waits = sa.select(step.name).where(
        step.job_id == job.id,
        step.kind == StepKind.signal,
        step.finished_at.is_(None),
        sa.or_(step.name == name, sa.func.starts_with(step.name, f"{name} (")),  # a second wait is the step "name (2)"
    )
    position = sa.case((job.ordered_by.is_not(None), job.position), else_=models.positions.next_value())
    woken = session.execute(
        sa.update(job)
        .where(job.id == job_id, job.state == "scheduled", waits.exists())
        .values(state="queued", position=position, run_at=sa.func.clock_timestamp())
        .returning(job.id),
        execution_options={"synchronize_session": False},
    )
    return woken.first() is not None
