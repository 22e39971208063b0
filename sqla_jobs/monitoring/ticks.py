"""The recorded outcomes of a schedule's last ticks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import JobState, TickOutcome
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.rules.wording import plural


@dataclass(frozen=True, slots=True)
class TickReport:
    """One tick, or several in a row that were missed."""

    scheduled_for: datetime
    until: datetime
    """The last tick; equal to `scheduled_for` for a single tick."""
    count: int | None
    """The number of ticks; None if there were too many to count."""
    outcome: TickOutcome
    at: datetime
    """The time at which a clock handled the tick."""
    late: float
    """Seconds from the tick until `at`."""
    job_id: int | None
    """The job that the tick enqueued, or that caused the tick to be skipped."""
    job_state: JobState | None
    """The job's current state; None if the job was deleted."""

    @property
    def how_many(self) -> str:
        """The number of ticks, for people."""
        return "more than 1,000 ticks" if self.count is None else plural(self.count, "tick")


def read_ticks(session: Session, jobs: Jobs[Any], schedule_id: int, limit: int) -> list[TickReport]:
    """Return the last ticks of a schedule, the newest first."""
    tick, job = jobs.Tick, jobs.Job
    rows = ask(
        session,
        jobs,
        sa.select(tick, job.state)
        .outerjoin(job, job.id == tick.job_id)
        .where(tick.schedule_id == schedule_id)
        .order_by(tick.scheduled_for.desc(), tick.id.desc())
        .limit(limit),
    )
    return [
        TickReport(
            one.scheduled_for,
            one.until,
            one.count,
            one.outcome,
            one.at,
            (one.at - one.scheduled_for).total_seconds(),
            one.job_id,
            state,
        )
        for one, state in rows
    ]


def read_refusal(session: Session, jobs: Jobs[Any], schedule_id: int) -> str | None:
    """Return why the current tick is refused, if a clock has set it aside; otherwise None."""
    process = jobs.Process
    why = process.set_aside[f"schedule {schedule_id}"].astext
    found: str | None = ask(session, jobs, sa.select(why).where(why.is_not(None)).limit(1)).scalar()
    return found and found.removeprefix("a tick of it ")
