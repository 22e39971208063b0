"""The page of processes, with their running jobs."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from flask import Response
from sqlalchemy import func, select, true
from sqlalchemy.orm import Session

from sqla_jobs.dashboard.site import Dashboard
from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.monitoring.processes import ProcessStatus, read_held, read_processes

_NEWEST = 5_000
"""The maximum number of runs read, the newest first."""
_STORED_WITHIN = 10.0
"""When a job has ended, its process's row shows it within this many seconds."""


@dataclass(frozen=True, slots=True)
class LastJob:
    """An attempt that ended, and its job."""

    job_id: int
    task: str
    outcome: str
    finished_at: datetime


def show(site: Dashboard) -> Response:
    """GET /processes"""
    jobs = site.jobs
    with site.reading() as (session, now):
        held = read_held(session, jobs)
        processes = read_processes(session, jobs, held)
        last_jobs = _last_jobs(session, jobs)
    known = {process.id for process in processes}
    gone = [part for part in held if part.process_id not in known]
    return site.render(
        "processes.html",
        now,
        processes=[(process, *_last(process, last_jobs, now)) for process in processes],
        versions=sorted({process.version for process in processes if process.alive and process.version}),
        left_by_gone=sum(part.begun + part.claimed for part in gone),
    )


def _last(
    process: ProcessStatus, last_jobs: Mapping[uuid.UUID, LastJob], now: datetime
) -> tuple[datetime | None, LastJob | None]:
    """Return the time at which a job last ended in the process, and that job if it is known."""
    stored = None if process.idle is None else now - timedelta(seconds=process.idle)
    found = last_jobs.get(process.id)
    if found is None or (stored is not None and found.finished_at < stored - timedelta(seconds=_STORED_WITHIN)):
        return stored, None
    return found.finished_at, found


def _last_jobs(session: Session, jobs: Jobs[Any]) -> dict[uuid.UUID, LastJob]:
    """Find the job that last ended in each process among the newest runs, since no index covers a process's runs."""
    job, run = jobs.Job, jobs.Run
    named = (run.process_id, run.job_id, run.outcome, run.finished_at)
    newest = select(*named).order_by(run.id.desc()).limit(_NEWEST).subquery("newest")
    place = func.row_number().over(partition_by=newest.c.process_id, order_by=newest.c.finished_at.desc())
    last = select(newest, place.label("place")).where(newest.c.process_id.in_(select(jobs.Process.id))).subquery("last")
    # LIMIT makes the planner look up each row by primary key
    of_job = select(job.task).where(last.c.place == 1, job.id == last.c.job_id).limit(1).lateral("of_job")
    columns: Any = (last.c.process_id, last.c.job_id, of_job.c.task, last.c.outcome, last.c.finished_at)
    rows = ask(session, jobs, select(*columns).select_from(last.join(of_job, true())))
    return {process_id: LastJob(*rest) for process_id, *rest in rows}
