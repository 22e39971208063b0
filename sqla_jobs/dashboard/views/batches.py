"""The pages of batches."""

from __future__ import annotations

import sqlalchemy as sa
from flask import Response, request

from sqla_jobs.dashboard.data.listing import columns
from sqla_jobs.dashboard.data.workflow import after_edges
from sqla_jobs.dashboard.site import Dashboard
from sqla_jobs.dashboard.views.jobs_list import lines
from sqla_jobs.monitoring.batches import read_batch, read_batches
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.rules.value_checks import read_id

_SIZE = 20
_FAILED = 10


def show_all(site: Dashboard) -> Response:
    """GET /batches"""
    below = request.args.get("below", type=read_id)
    with site.reading() as (session, now):
        found = read_batches(session, site.jobs, _SIZE + 1, below=below)
    return site.render(
        "batches.html",
        now,
        batches=found[:_SIZE],
        is_first_page=below is None,
        older=found[_SIZE - 1].id if len(found) > _SIZE else None,
    )


def show(site: Dashboard, batch_id: int) -> Response:
    """GET /batches/<id>"""
    jobs = site.jobs
    job, edge = jobs.Job, jobs.Edge
    with site.reading() as (session, now):
        batch = read_batch(session, jobs, batch_id)
        failed = sa.select(*columns(job)).where(job.batch_id == batch_id, job.state == "failed").order_by(job.id.desc())
        rows = ask(session, jobs, failed.limit(_FAILED)).all()
        return site.render(
            "batch.html",
            now,
            batch=batch,
            failed=lines(site, session, rows),
            before=after_edges(session, jobs, edge.batch_id == batch_id),
        )
