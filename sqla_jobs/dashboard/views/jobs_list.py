"""The page of all jobs: filtered, sorted, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flask import Response, request
from sqlalchemy import literal, select
from sqlalchemy.orm import Session

from sqla_jobs.dashboard.data.filters import BadFilter, Filter, read_filter
from sqla_jobs.dashboard.data.listing import Found, find, last_errors, orders
from sqla_jobs.dashboard.data.names import Names, read_names
from sqla_jobs.dashboard.data.paging import BadCursor, Order
from sqla_jobs.dashboard.data.reading import counted
from sqla_jobs.dashboard.site import Dashboard
from sqla_jobs.dashboard.views.changes import offered
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import JobState
from sqla_jobs.rules.wording import Count


@dataclass(frozen=True)
class Line:
    """One job in a list."""

    job: Any
    summary: str
    error_type: str | None
    error: str | None

    @property
    def told(self) -> tuple[str, datetime | None]:
        """The most relevant time for the job's state, with a label."""
        job = self.job
        match job.state:
            case JobState.blocked:
                return "blocked since", job.created_at
            case JobState.scheduled:
                return "due", job.run_at
            case JobState.queued:
                return "waiting since", job.run_at
            case JobState.running:
                return "started", job.started_at
            case _:
                return str(job.state), job.finished_at

    @property
    def ran_for(self) -> float | None:
        """The duration in seconds of the attempt that ended the job; None if there was none."""
        job = self.job
        if job.finished_at is None or job.started_at is None or job.state == JobState.running:
            return None
        return max(0.0, float((job.finished_at - job.started_at).total_seconds()))


def lines(site: Dashboard, session: Session, rows: Sequence[Any]) -> list[Line]:
    """Return these rows as lines of a list, without sensitive values."""
    errors = last_errors(session, site.jobs, [row.id for row in rows]) if rows else {}
    made: list[Line] = []
    for row in rows:
        kind, error = errors.get(row.id, (None, None))
        if row.args_text is None:
            made.append(Line(row, "large arguments", kind, None if kind is None else "see the job"))
        else:
            shown = site.shown(row.task, row.args_text)
            made.append(Line(row, shown.summary, kind, error and shown.beginning(error)))
    return made


def show(site: Dashboard) -> Response:
    """GET /jobs"""
    try:
        wanted = read_filter(site.jobs, request.args)
        order, found, seen, tabs, names, now = _read(site, wanted)
    except (BadFilter, BadCursor) as error:
        return site.render("error.html", None, 400, title="That address cannot be understood", message=str(error))
    total = len(seen) if not (found.next_key or found.previous_key or found.ran_out_of_time) else None
    sort = request.args.get("sort")
    kept = dict(wanted.given) | ({"sort": sort} if sort else {})
    return site.render(
        "jobs.html",
        now,
        wanted=wanted,
        tabs=tabs,
        order=order,
        orders=orders(site.jobs, wanted.state),
        found=found,
        lines=seen,
        total=total,
        names=names,
        kept=kept,
        offered=offered(wanted.state),
        next_url=found.next_key and site.url("jobs", **kept, after=order.write(found.next_key)),
        previous_url=found.previous_key and site.url("jobs", **kept, before=order.write(found.previous_key)),
        first_url=site.url("jobs", **kept),
    )


def _read(site: Dashboard, wanted: Filter) -> tuple[Order, Found, list[Line], list[tuple[str, Count]], Names, datetime]:
    available = orders(site.jobs, wanted.state)
    order = next((one for one in available if one.name == request.args.get("sort")), available[0])
    after, before = (order.read(key) if (key := request.args.get(name)) else None for name in ("after", "before"))
    with site.reading() as (session, now):
        found = find(session, site.jobs, wanted.selection, order, after=after, before=before)
        seen, tabs = lines(site, session, found.rows), state_counts(session, site.jobs)
        return order, found, seen, tabs, read_names(session, site.jobs), now


def state_counts(session: Session, jobs: Jobs[Any]) -> list[tuple[str, Count]]:
    """Count the jobs of each state."""
    job: Any = jobs.Job
    order = {
        JobState.blocked: [job.waits_for],
        JobState.scheduled: [job.run_at],
        JobState.queued: [job.queue, job.priority, job.position],
        JobState.running: [job.process_id],
    }
    return [
        (
            str(state),
            counted(
                session,
                jobs,
                select(literal(1))
                .where(job.state == state, *([job.waits_for.is_not(None)] if state == JobState.blocked else []))
                .order_by(*order.get(state, [job.finished_at])),
            ),
        )
        for state in JobState
    ]
