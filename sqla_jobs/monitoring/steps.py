"""The steps of a job, for people."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Text, cast, select
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import StepKind
from sqla_jobs.monitoring.finding import ask

_AGAIN = re.compile(r" \([0-9]+\)$")


@dataclass(frozen=True, slots=True)
class StepRow:
    """A step of a job, with its result as stored, which may hold secrets."""

    name: str
    kind: StepKind
    number: int
    run_id: int
    """The run that began it."""
    started_at: datetime
    finished_at: datetime | None
    """None while the job sleeps or waits for a signal."""
    until: datetime | None
    """The end of a sleep or a wait; None for a wait without one."""
    result: str | None
    """JSON text."""

    @property
    def seconds(self) -> float | None:
        """How long it took; None before its end."""
        return None if self.finished_at is None else (self.finished_at - self.started_at).total_seconds()

    @property
    def awaited(self) -> str | None:
        """The name of the signal that the job waits for; None if the step is not an unfinished wait."""
        return signal_of(self.name) if self.kind == StepKind.signal and self.finished_at is None else None


def signal_of(step: str) -> str:
    """Return the name of the signal that a step waits for: the second wait for "paid" is the step "paid (2)"."""
    return _AGAIN.sub("", step)


def read_steps(session: Session, jobs: Jobs[Any], job_id: int) -> list[StepRow]:
    """Return the steps of a job, in the order in which they began."""
    step: Any = jobs.Step
    names = ("name", "kind", "number", "run_id", "started_at", "finished_at", "until")
    stored = select(*(getattr(step, name) for name in names), cast(step.result, Text)).where(step.job_id == job_id)
    return [StepRow(*row) for row in ask(session, jobs, stored.order_by(step.number, step.started_at))]
