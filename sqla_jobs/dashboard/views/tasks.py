"""The page of tasks, with their runs, outcomes and durations."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from flask import Response, request

from sqla_jobs.dashboard.data.runs import SPANS, Figures, read_figures, read_period
from sqla_jobs.dashboard.site import Dashboard
from sqla_jobs.monitoring.finding import ask

_SHOWN = 200
"""The maximum number of tasks on the page."""


@dataclass(frozen=True, slots=True)
class Line:
    """One task's attempts that ended in a span, and the number of its running jobs."""

    task: str
    figures: Figures
    running: int


def show(site: Dashboard) -> Response:
    """GET /tasks"""
    span = SPANS.get(request.args.get("span", ""), SPANS["hour"])
    jobs = site.jobs
    jobs.tasks.load()
    with site.reading() as (session, now):
        period = read_period(session, jobs, span, now)
        _, found = read_figures(session, jobs, period, lambda runs: runs.c.task)
        by_state = sa.select(jobs.Job.task, sa.func.count()).where(jobs.Job.state == "running").group_by(jobs.Job.task)
        running: dict[str, int] = {row[0]: row[1] for row in ask(session, jobs, by_state)}
    found.pop(None, None)  # of deleted jobs
    names = sorted({*jobs.tasks, *found, *running})
    tasks = [Line(name, found.get(name, Figures()), running.get(name, 0)) for name in names]
    return site.render(
        "tasks.html",
        now,
        span=span,
        spans=SPANS.values(),
        period=period,
        number=len(tasks),
        tasks=sorted(tasks, key=lambda one: -one.figures.ended)[:_SHOWN],
    )
