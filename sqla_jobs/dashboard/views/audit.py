"""The page of the audit log: changes from the dashboard or the command line."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from flask import Response, request

from sqla_jobs.dashboard.data.listing import SIZE
from sqla_jobs.dashboard.data.paging import BadCursor, Order
from sqla_jobs.dashboard.site import Dashboard
from sqla_jobs.errors import ArgumentsError
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.rules import json_text
from sqla_jobs.rules.value_checks import check_text


def show(site: Dashboard) -> Response:
    """GET /audit"""
    audit: Any = site.jobs.Audit
    order = Order("newest", "newest first", (audit.id,), True)
    query = sa.select(
        audit.id, audit.at, audit.actor, audit.action, audit.subject, sa.cast(audit.details, sa.Text).label("said")
    )
    subject = request.args.get("subject", "").strip()
    key = request.args.get("after")
    try:
        if subject:
            query = query.where(audit.subject == check_text("subject", subject))
        if key:
            query = query.where(order.beyond(order.read(key)))
    except (ArgumentsError, BadCursor) as error:
        return site.render("error.html", None, 400, title="That address cannot be understood", message=str(error))
    with site.reading() as (session, now):
        rows = ask(session, site.jobs, query.order_by(*order.by()).limit(SIZE + 1)).all()
    lines = [(row, _details(row.said)) for row in rows[:SIZE]]
    next_key = [rows[SIZE - 1].id] if len(rows) > SIZE else None
    kept = {"subject": subject or None}
    return site.render(
        "audit.html",
        now,
        lines=lines,
        subject=subject,
        next_url=next_key and site.url("audit", **kept, after=order.write(next_key)),
        first_url=site.url("audit", **kept) if key else None,
    )


def _details(text: str) -> list[tuple[str, str]]:
    found: dict[str, Any] = json_text.parse(text)
    return [(name, value if isinstance(value, str) else json_text.compact(value)) for name, value in found.items()]
