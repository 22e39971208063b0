"""The page of tasks, with their runs, outcomes and durations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Column:
    """One sortable column of the table."""

    name: str
    title: str
    of: Callable[[Line], Any]
    order: str = "desc"
    """The initial sort direction: `asc` or `desc`."""

    def sorted(self, tasks: Sequence[Line], order: str) -> list[Line]:
        """Sort the tasks by this column. Tasks without a value come last."""
        told = [task for task in tasks if self.of(task) is not None]
        others = [task for task in tasks if self.of(task) is None]
        return sorted(told, key=self.of, reverse=order == "desc") + others


COLUMNS = {
    column.name: column
    for column in (
        Column("task", "Task", lambda line: line.task, "asc"),
        Column("runs", "Runs", lambda line: line.figures.ended),
        Column("failures", "Failures", lambda line: line.figures.failed),
        Column("retries", "Retries", lambda line: line.figures.retried),
        Column("running", "Running", lambda line: line.running),
        Column("wait50", "Wait p50", lambda line: line.figures.wait and line.figures.wait[0]),
        Column("wait95", "Wait p95", lambda line: line.figures.wait and line.figures.wait[1]),
        Column("run50", "Run p50", lambda line: line.figures.run and line.figures.run[0]),
        Column("run95", "Run p95", lambda line: line.figures.run and line.figures.run[1]),
    )
}


def show(site: Dashboard) -> Response:
    """GET /tasks"""
    span = SPANS.get(request.args.get("span", ""), SPANS["hour"])
    column = COLUMNS.get(request.args.get("sort", ""), COLUMNS["runs"])
    order = request.args.get("order", "")
    order = order if order in ("asc", "desc") else column.order
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
        columns=COLUMNS.values(),
        column=column,
        order=order,
        period=period,
        number=len(tasks),
        tasks=column.sorted(tasks, order)[:_SHOWN],
    )
