"""The page of processes, with their running jobs."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from flask import Response

from sqla_jobs.dashboard.data.runs import SPANS, read_period, runs_in
from sqla_jobs.dashboard.site import Dashboard
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.monitoring.processes import ProcessStatus, read_held, read_processes

_STORED_WITHIN = timedelta(seconds=10)
"""When a job has ended, its process's row shows it within this time."""


def show(site: Dashboard) -> Response:
    """GET /processes"""
    jobs = site.jobs
    with site.reading() as (session, now):
        held = read_held(session, jobs)
        processes = read_processes(session, jobs, held)
        runs = runs_in(jobs, read_period(session, jobs, SPANS["week"], now)).c
        place = sa.func.row_number().over(partition_by=runs.process_id, order_by=runs.finished_at.desc())
        named = (runs.process_id, runs.job_id, runs.task, runs.outcome, runs.finished_at, place.label("place"))
        last = sa.select(*named).where(runs.task.is_not(None)).subquery("last")
        last_runs = {row.process_id: row for row in ask(session, jobs, sa.select(last).where(last.c.place == 1))}
    known = {process.id for process in processes}
    gone = [part for part in held if part.process_id not in known]
    return site.render(
        "processes.html",
        now,
        processes=[(process, *_last(process, last_runs.get(process.id), now)) for process in processes],
        versions=sorted({process.version for process in processes if process.alive and process.version}),
        left_by_gone=sum(part.begun + part.claimed for part in gone),
    )


def _last(process: ProcessStatus, run: Any, now: datetime) -> tuple[datetime | None, Any]:
    """Return the time at which a job last ended in the process, and its run if it is among those that were read."""
    stored = None if process.idle is None else now - timedelta(seconds=process.idle)
    if run is None or (stored is not None and run.finished_at < stored - _STORED_WITHIN):
        return stored, None
    return run.finished_at, run
