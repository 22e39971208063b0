"""The columns of the tables behind workflows, as mixins: batches, edges between jobs, steps and signals."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from sqla_jobs.models.row import Row, now
from sqla_jobs.models.types import StepKind, WordType


class BatchMixin(Row):
    """A batch of jobs, which other jobs can be enqueued after."""

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    """Assigned by the database when the batch is inserted."""
    name: Mapped[str] = mapped_column(sa.Text, nullable=False, server_default="")
    """The batch's name, for people."""
    created_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), nullable=False, server_default=now())
    """When the row was inserted."""
    closed_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    """When all its jobs had ended and a job that waited for the batch could start. Since then, no jobs can join."""


class EdgeMixin(Row):
    """An edge of a workflow: a job was enqueued after another job, or after a batch."""

    job_id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    """The job that waits."""
    place: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
    """The place in `after=`, from 1. An edge at 2147483647 stands for deleted jobs of batches in `after=`."""
    needs_id: Mapped[int | None] = mapped_column(sa.BigInteger)
    """The job that must end first. Null for a batch, and for deleted jobs."""
    batch_id: Mapped[int | None] = mapped_column(sa.BigInteger)
    """The batch whose jobs must end first. Null for a job."""


class StepMixin(Row):
    """A step of a job: its name and its result, which later attempts use instead of calling the step again."""

    job_id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    """The job."""
    name: Mapped[str] = mapped_column(sa.Text(collation="C"), primary_key=True)
    """The step's name, which is unique within its job."""
    kind: Mapped[StepKind] = mapped_column(WordType(StepKind), nullable=False, server_default="step")
    """The kind of the step."""
    number: Mapped[int] = mapped_column(sa.Integer, nullable=False)
    """The step's number within its job, from 1."""
    run_id: Mapped[int] = mapped_column(sa.BigInteger, nullable=False)
    """The run that began the step."""
    started_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), nullable=False, server_default=now())
    """When the step began."""
    finished_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    """When the step ended. Null while the job sleeps or waits for a signal."""
    until: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    """When the sleep, or the wait for a signal, ends. Null for a wait without a timeout."""
    result: Mapped[Any] = mapped_column(JSONB(none_as_null=True), nullable=True)
    """The step's result as JSON, or the signal's payload. Null if there is none."""


class SignalMixin(Row):
    """A signal to a job, kept until a run of the job receives it."""

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    """Assigned by the database when the signal is sent."""
    job_id: Mapped[int] = mapped_column(sa.BigInteger, nullable=False)
    """The job that receives the signal."""
    name: Mapped[str] = mapped_column(sa.Text(collation="C"), nullable=False)
    """The signal's name."""
    payload: Mapped[Any] = mapped_column(JSONB(none_as_null=True), nullable=True)
    """The signal's payload, as JSON. Null if the signal has none."""
    sent_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), nullable=False, server_default=now())
    """When the signal was sent."""
