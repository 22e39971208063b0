"""The page of processes: what each runs, and how it does."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta

from flask import Response

from sqla_jobs.dashboard.data.last_jobs import LastJob, read_last_jobs
from sqla_jobs.dashboard.site import Dashboard
from sqla_jobs.monitoring.processes import ProcessStatus, read_held, read_processes

_STORED_WITHIN = 10.0
"""Seconds within which the row of a process tells that a job has ended in it."""


def show(site: Dashboard) -> Response:
    """GET /processes"""
    jobs = site.jobs
    with site.reading() as (session, now):
        held = read_held(session, jobs)
        processes = read_processes(session, jobs, held)
        last_jobs = read_last_jobs(session, jobs)
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
    """When a job last ended in the process, and which one, if that is known."""
    stored = None if process.idle is None else now - timedelta(seconds=process.idle)
    found = last_jobs.get(process.id)
    if found is None or (stored is not None and found.finished_at < stored - timedelta(seconds=_STORED_WITHIN)):
        return stored, None
    return found.finished_at, found
