"""The steps of a job, for people."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from shlex import quote
from typing import Any, NamedTuple

from sqlalchemy import Text, cast, func, select
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import PARKED, JobState, StepKind
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.rules.wording import duration, moment

_UNREAD = 5
"""Maximum number of signals that are named."""
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


def kept(session: Session, jobs: Jobs[Any], job_id: int, sent: str) -> str | None:
    """Return that a signal was kept since the job waits for another one, or None if the job waits for none."""
    awaited = read_awaited(session, jobs, job_id)
    if awaited is None or awaited == sent:
        return None
    return f"job {job_id} waits for {awaited!r:.200}, not {sent!r:.200}; it is kept until the job asks for it"


def read_awaited(session: Session, jobs: Jobs[Any], job_id: int) -> str | None:
    """Return the name of the signal that a job waits for, or None."""
    job, step = jobs.Job, jobs.Step
    waits = select(step.name).join(job, job.id == step.job_id)
    waits = waits.where(job.id == job_id, job.state == JobState.scheduled)
    waits = waits.where(step.kind == StepKind.signal, step.finished_at.is_(None)).order_by(step.number.desc())
    found = ask(session, jobs, waits.limit(1)).scalar_one_or_none()
    return None if found is None else signal_of(found)


def read_awaiting(session: Session, jobs: Jobs[Any], job_ids: Collection[int]) -> set[int]:
    """Return those of these jobs that wait for a signal without an end."""
    job, step = jobs.Job, jobs.Step
    waits = select(job.id).join(step, step.job_id == job.id).where(job.id.in_(job_ids), job.run_at == PARKED)
    waits = waits.where(step.kind == StepKind.signal, step.finished_at.is_(None), job.state == JobState.scheduled)
    return {*ask(session, jobs, waits).scalars()}


def read_unread(session: Session, jobs: Jobs[Any], job_id: int) -> list[str]:
    """Return the names of the first signals that a job has not received, the oldest first."""
    signal: Any = jobs.Signal
    first = select(signal.name).where(signal.job_id == job_id).group_by(signal.name).order_by(func.min(signal.id))
    return [*ask(session, jobs, first.limit(_UNREAD)).scalars()]


def read_steps(session: Session, jobs: Jobs[Any], job_id: int) -> list[StepRow]:
    """Return the steps of a job, in the order in which they began."""
    step: Any = jobs.Step
    names = ("name", "kind", "number", "run_id", "started_at", "finished_at", "until")
    stored = select(*(getattr(step, name) for name in names), cast(step.result, Text)).where(step.job_id == job_id)
    return [StepRow(*row) for row in ask(session, jobs, stored.order_by(step.number, step.started_at))]


class StepWait(NamedTuple):
    """The sleep, or the wait for a signal, that a scheduled job is in."""

    words: str
    """What the job does, such as "sleeps in the step 'cool down' until …"."""
    signal: str | None
    """The command that sends the signal; None for a sleep."""


def read_wait(session: Session, jobs: Jobs[Any], job_id: int, run_at: datetime) -> StepWait | None:
    """Return what a scheduled job that is due at `run_at` is in; None if it waits for something else."""
    step: Any = jobs.Step
    columns = (step.name, step.kind, step.until, func.clock_timestamp().label("now"))
    waits = select(*columns).where(step.job_id == job_id, step.finished_at.is_(None))
    wait = ask(session, jobs, waits.order_by(step.number.desc()).limit(1)).first()
    if wait is None or (wait.until or PARKED) != run_at:  # somebody has rescheduled it
        return None
    until = ""
    if wait.until is not None:
        until = f" until {moment(wait.until)}, in {duration((wait.until - wait.now).total_seconds())}"
    if wait.kind == StepKind.sleep:
        return StepWait(f"sleeps in the step {wait.name!r:.200}{until}", None)
    name = signal_of(wait.name)
    return StepWait(f"waits for the signal {name!r:.200}{until}", f"sqla-jobs signal {job_id} {quote(name)} JSON")
