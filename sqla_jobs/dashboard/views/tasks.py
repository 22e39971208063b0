"""The page of tasks, with their runs, outcomes and durations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from flask import Response, request

from sqla_jobs.dashboard.data.statistics import SPANS, Span
from sqla_jobs.dashboard.data.tasks import TaskFigures, read_tasks
from sqla_jobs.dashboard.site import Dashboard

_SHOWN = 200
"""The maximum number of tasks on the page."""


@dataclass(frozen=True)
class Column:
    """One sortable column of the table."""

    name: str
    title: str
    of: Callable[[TaskFigures], Any]
    order: str = "desc"
    """The initial sort direction: `asc` or `desc`."""

    def sorted(self, tasks: Sequence[TaskFigures], order: str) -> list[TaskFigures]:
        """Sort the tasks by this column. Tasks without a value come last."""
        told = [task for task in tasks if self.of(task) is not None]
        others = [task for task in tasks if self.of(task) is None]
        return sorted(told, key=self.of, reverse=order == "desc") + others


def _part(name: str, place: int) -> Callable[[TaskFigures], Any]:
    """Return a function that gets the median or the 95th percentile of a time, or None without values."""
    return lambda task: None if (times := getattr(task, name)) is None else times[place]


COLUMNS = {
    column.name: column
    for column in (
        Column("task", "Task", attrgetter("task"), "asc"),
        Column("starts", "Starts", attrgetter("starts")),
        Column("failures", "Failures", attrgetter("failures")),
        Column("retries", "Retries", attrgetter("retries")),
        Column("running", "Running", attrgetter("running")),
        Column("wait50", "Wait p50", _part("wait", 0)),
        Column("wait95", "Wait p95", _part("wait", 1)),
        Column("run50", "Run p50", _part("run", 0)),
        Column("run95", "Run p95", _part("run", 1)),
    )
}


@dataclass(frozen=True)
class Sorting:
    """The order of the table, and the addresses of other orders."""

    site: Dashboard
    span: Span
    column: Column
    order: str

    def url(self, column: Column) -> str:
        """Return the URL of the table sorted by that column, in reverse order if it is the current column."""
        flipped = "asc" if self.order == "desc" else "desc"
        return self._page(self.span, column, flipped if column is self.column else column.order)

    def over(self, span: Span) -> str:
        """Return the URL for another span, in the same order."""
        return self._page(span, self.column, self.order)

    def _page(self, span: Span, column: Column, order: str) -> str:
        return self.site.url("tasks", span=span.name, sort=column.name, order=order)


def show(site: Dashboard) -> Response:
    """GET /tasks"""
    span = SPANS.get(request.args.get("span", ""), SPANS["hour"])
    column = COLUMNS.get(request.args.get("sort", ""), COLUMNS["starts"])
    order = request.args.get("order", "")
    sorting = Sorting(site, span, column, order if order in ("asc", "desc") else column.order)
    site.jobs.tasks.load()
    with site.reading() as (session, now):
        found = read_tasks(session, site.jobs, span, now)
    return site.render(
        "tasks.html",
        now,
        span=span,
        spans=SPANS.values(),
        columns=COLUMNS.values(),
        sorting=sorting,
        found=found,
        tasks=column.sorted(found.figures, sorting.order)[:_SHOWN],
    )
