"""The page of all jobs: filtered, sorted, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flask import Response, request
from sqlalchemy.orm import Session

from sqla_jobs.dashboard.data.filters import BadFilter, read_filter
from sqla_jobs.dashboard.data.listing import RECENT, BadCursor, count_states, find, last_errors, order_of, read_after
from sqla_jobs.dashboard.data.names import read_names
from sqla_jobs.dashboard.site import Dashboard
from sqla_jobs.dashboard.views.changes import offered
from sqla_jobs.models.types import JobState
from sqla_jobs.monitoring.without_secrets import without_secrets


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
            said = without_secrets(site.jobs, row.task, row.args_text)
            made.append(Line(row, said.summary, kind, error and said.beginning(error)))
    return made


def show(site: Dashboard) -> Response:
    """GET /jobs"""
    jobs = site.jobs
    try:
        wanted = read_filter(jobs, request.args)
        after = read_after(request.args.get("after"))
        with site.reading() as (session, now):
            found = find(session, jobs, wanted.selection, order_of(jobs, wanted.state), after)
            seen, tabs = lines(site, session, found.rows), count_states(session, jobs)
            names = read_names(session, jobs)
    except (BadFilter, BadCursor) as error:
        return site.render("error.html", None, 400, title="That address cannot be understood", message=str(error))
    return site.render(
        "jobs.html",
        now,
        wanted=wanted,
        tabs=tabs,
        found=found,
        lines=seen,
        names=names,
        offered=offered(wanted.state),
        recent=RECENT,
        next_url=None if found.next_id is None else site.url("jobs", **wanted.given, after=found.next_id),
        first_url=None if after is None else site.url("jobs", **wanted.given),
    )
