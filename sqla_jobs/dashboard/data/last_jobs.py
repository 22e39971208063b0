"""The job that last ended in each process, found among the newest runs: no index has the runs of a process."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, true
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import ask

_NEWEST = 5_000
"""Runs that are looked at."""


@dataclass(frozen=True, slots=True)
class LastJob:
    """An attempt that ended, and its job."""

    job_id: int
    task: str
    outcome: str
    finished_at: datetime


def read_last_jobs(session: Session, jobs: Jobs[Any]) -> dict[uuid.UUID, LastJob]:
    """By process; of a process whose last run is not among the newest there is none."""
    job, run = jobs.Job, jobs.Run
    named = (run.process_id, run.job_id, run.outcome, run.finished_at)
    newest = select(*named).order_by(run.id.desc()).limit(_NEWEST).subquery("newest")
    place = func.row_number().over(partition_by=newest.c.process_id, order_by=newest.c.finished_at.desc())
    last = select(newest, place.label("place")).where(newest.c.process_id.in_(select(jobs.Process.id))).subquery("last")
    # LIMIT keeps each look-up one in the primary key
    of_job = select(job.task).where(last.c.place == 1, job.id == last.c.job_id).limit(1).lateral("of_job")
    columns: Any = (last.c.process_id, last.c.job_id, of_job.c.task, last.c.outcome, last.c.finished_at)
    rows = ask(session, jobs, select(*columns).select_from(last.join(of_job, true())))
    return {process_id: LastJob(*rest) for process_id, *rest in rows}
