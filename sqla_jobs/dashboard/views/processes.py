"""The page of processes, with their running jobs."""

from __future__ import annotations

from flask import Response

from sqla_jobs.dashboard.site import Dashboard
from sqla_jobs.monitoring.processes import read_held, read_processes


def show(site: Dashboard) -> Response:
    """GET /processes"""
    with site.reading() as (session, now):
        held = read_held(session, site.jobs)
        processes = read_processes(session, site.jobs, held)
    known = {process.id for process in processes}
    left = sum(part.begun + part.claimed for part in held if part.process_id not in known)
    return site.render("processes.html", now, processes=processes, left_by_gone=left)
