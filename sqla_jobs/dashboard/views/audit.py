"""The page of the audit log: changes from the dashboard or the command line."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from flask import Response, request

from sqla_jobs.dashboard.data.listing import SIZE, BadCursor, read_after
from sqla_jobs.dashboard.site import Dashboard
from sqla_jobs.errors import ArgumentsError
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.rules import json_text
from sqla_jobs.rules.value_checks import check_text


def show(site: Dashboard) -> Response:
    """GET /audit"""
    audit: Any = site.jobs.Audit
    query = sa.select(
        audit.id, audit.at, audit.actor, audit.action, audit.subject, sa.cast(audit.details, sa.Text).label("said")
    )
    subject = request.args.get("subject", "").strip()
    try:
        after = read_after(request.args.get("after"))
        if subject:
            query = query.where(audit.subject == check_text("subject", subject))
        if after is not None:
            query = query.where(audit.id < after)
    except (ArgumentsError, BadCursor) as error:
        return site.render("error.html", None, 400, title="That address cannot be understood", message=str(error))
    with site.reading() as (session, now):
        rows = ask(session, site.jobs, query.order_by(audit.id.desc()).limit(SIZE + 1)).all()
    lines = [(row, _details(row.said)) for row in rows[:SIZE]]
    kept = {"subject": subject or None}
    return site.render(
        "audit.html",
        now,
        lines=lines,
        subject=subject,
        next_url=site.url("audit", **kept, after=rows[SIZE - 1].id) if len(rows) > SIZE else None,
        first_url=None if after is None else site.url("audit", **kept),
    )


def _details(text: str) -> list[tuple[str, str]]:
    found: dict[str, Any] = json_text.parse(text)
    return [(name, value if isinstance(value, str) else json_text.compact(value)) for name, value in found.items()]
