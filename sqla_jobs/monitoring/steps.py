"""The steps of a job, for people."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from shlex import quote
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import PARKED, StepKind
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.rules.wording import duration, moment

_UNREAD = 5
"""The maximum number of signals that are named."""
_AGAIN = re.compile(r" \([0-9]+\)$")


@dataclass(frozen=True, slots=True)
class StepRow:
    """A step of a job. Its result is as stored, and may hold secrets."""

    name: str
    kind: StepKind
    number: int
    run_id: int
    """The run that began the step."""
    started_at: datetime
    finished_at: datetime | None
    """None while the job sleeps or waits for a signal."""
    until: datetime | None
    """The end of a sleep or a wait; None for a wait without a timeout."""
    result: str | None
    """JSON text."""

    @property
    def seconds(self) -> float | None:
        """How long the step took; None before its end."""
        return None if self.finished_at is None else (self.finished_at - self.started_at).total_seconds()

    @property
    def awaited(self) -> str | None:
        """The name of the signal that the job waits for; None if the step is not an unfinished wait."""
        return signal_of(self.name) if self.kind == StepKind.signal and self.finished_at is None else None


def signal_of(step: str) -> str:
    """Return the name of the signal that a step waits for: the second wait for "paid" is the step "paid (2)"."""
    return _AGAIN.sub("", step)


def read_unread(session: Session, jobs: Jobs[Any], job_id: int) -> list[str]:
    """Return the names of the first signals that a job has not received, the oldest first."""
    signal: Any = jobs.Signal
    first = sa.select(signal.name).where(signal.job_id == job_id).group_by(signal.name).order_by(sa.func.min(signal.id))
    return [*ask(session, jobs, first.limit(_UNREAD)).scalars()]


def read_steps(session: Session, jobs: Jobs[Any], job_id: int) -> list[StepRow]:
    """Return the steps of a job, in the order in which they began."""
    step: Any = jobs.Step
    names = ("name", "kind", "number", "run_id", "started_at", "finished_at", "until")
    stored = sa.select(*(getattr(step, name) for name in names), sa.cast(step.result, sa.Text)).where(
        step.job_id == job_id
    )
    return [StepRow(*row) for row in ask(session, jobs, stored.order_by(step.number, step.started_at))]


class StepWait(NamedTuple):
    """What a scheduled job does in its current step: it sleeps, or waits for a signal."""

    words: str
    """The wait in words, such as "sleeps in the step 'cool down' until …"."""
    signal: str | None
    """The command that sends the signal; None for a sleep."""


def read_wait(session: Session, jobs: Jobs[Any], job_id: int, run_at: datetime) -> StepWait | None:
    """Return the sleep or wait of a scheduled job that is due at `run_at`; None if it waits for something else."""
    step: Any = jobs.Step
    columns = (step.job_id, step.name, step.kind, step.until, sa.func.clock_timestamp().label("now"))
    waits = sa.select(*columns).where(step.job_id == job_id, step.finished_at.is_(None))
    last = ask(session, jobs, waits.order_by(step.number.desc()).limit(1)).one_or_none()
    if last is None or (last.until or PARKED) != run_at:  # otherwise somebody has rescheduled it
        return None
    return _step_wait(last)


def _step_wait(wait: Any) -> StepWait:
    until = ""
    if wait.until is not None:
        until = f" until {moment(wait.until)}, in {duration((wait.until - wait.now).total_seconds())}"
    if wait.kind == StepKind.sleep:
        return StepWait(f"sleeps in the step {wait.name!r:.200}{until}", None)
    name = signal_of(wait.name)
    return StepWait(f"waits for the signal {name!r:.200}{until}", f"sqla-jobs signal {wait.job_id} {quote(name)} JSON")
