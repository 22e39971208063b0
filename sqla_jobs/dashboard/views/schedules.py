"""The pages of schedules, and what can be done to one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from flask import Response, abort, request
from sqlalchemy import Text, cast, func, select, true
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from sqla_jobs.actions import schedules as schedule_actions
from sqla_jobs.actions.audit import Changing
from sqla_jobs.cron import Cron
from sqla_jobs.dashboard.data.listing import columns
from sqla_jobs.dashboard.shown import Shown
from sqla_jobs.dashboard.site import Dashboard
from sqla_jobs.dashboard.views.jobs_list import Line, lines
from sqla_jobs.errors import ConfigurationError, JobsError
from sqla_jobs.models.types import TickOutcome
from sqla_jobs.monitoring.ticks import TickReport, read_refusal, read_ticks
from sqla_jobs.queries.processes import is_alive

_RECENT = 8
_TICKS = 20
_UPCOMING = 5


@dataclass(frozen=True)
class Rule:
    """A schedule's rule for reading."""

    description: str
    upcoming: list[datetime]
    error: str | None = None


def rule_of(cron: str, timezone: str, now: datetime, first: datetime | None = None, *, count: int = _UPCOMING) -> Rule:
    """In plain English, and the next times, in its zone; or what is wrong with it."""
    try:
        rule = Cron.parse(cron, timezone)
        said, upcoming = rule.description, list[datetime]()
        tick = first if first is not None and first > now else rule.next_after(now)
        while True:
            upcoming.append(tick.astimezone(ZoneInfo(timezone)))
            if len(upcoming) == count:
                break
            tick = rule.next_after(tick)
    except ConfigurationError as error:
        return Rule("This rule cannot be read", [], str(error))
    return Rule(said, upcoming)


def show_all(site: Dashboard) -> Response:
    """GET /schedules"""
    schedule: Any = site.jobs.Schedule
    with site.reading() as (session, now):
        rows = session.execute(
            select(*_columns(schedule)).order_by(schedule.name).limit(1000), bind_arguments={"mapper": schedule}
        ).all()
        recent = _recent(session, site, [row.id for row in rows])
        live = session.scalar(
            select(func.count()).where(site.jobs.Process.kind == "clock", is_alive(site.jobs.Process))
        )
    listed = [
        (
            row,
            rule_of(row.cron, row.timezone, now, row.next_run_at, count=1),
            recent.get(row.id, []),
            site.shown(row.task, row.args_text).text(row.disabled_reason),
        )
        for row in rows
    ]
    return site.render("schedules.html", now, listed=listed, has_clock=bool(live))


def _columns(schedule: Any) -> list[Any]:
    stored = [column for column in schedule.__table__.c if column.name not in ("args", "declared_values")]
    return [*stored, cast(schedule.args, Text).label("args_text")]


def _recent(session: Session, site: Dashboard, schedule_ids: list[int]) -> dict[int, list[Any]]:
    """The last jobs of each, newest first."""
    if not schedule_ids:
        return {}
    job: Any = site.jobs.Job
    schedule: Any = site.jobs.Schedule
    last = (
        select(job.id, job.state, job.scheduled_for, job.finished_at)
        .where(job.schedule_id == schedule.id, job.scheduled_for.is_not(None))
        .order_by(job.scheduled_for.desc())
        .limit(_RECENT)
        .lateral("last")
    )
    query = (
        select(schedule.id.label("schedule_id"), *last.c)
        .join_from(schedule, last, true())
        .where(schedule.id.in_(schedule_ids))
        .order_by(schedule.id, last.c.scheduled_for.desc())
    )
    found: dict[int, list[Any]] = {}
    for row in session.execute(query, bind_arguments={"mapper": schedule}):
        found.setdefault(row.schedule_id, []).append(row)
    return found


def read_schedule(session: Session, site: Dashboard, schedule_id: int) -> tuple[Any, Shown]:
    """The schedule, and its arguments as they may be shown. Raises `UnknownSchedule`."""
    schedule: Any = site.jobs.Schedule
    row = session.execute(
        select(*_columns(schedule)).where(schedule.id == schedule_id), bind_arguments={"mapper": schedule}
    ).one_or_none()
    if row is None:
        raise schedule_actions.UnknownSchedule(f"There is no schedule {schedule_id}; it may have been removed.")
    return row, site.shown(row.task, row.args_text)


def show(site: Dashboard, schedule_id: int) -> Response:
    """GET /schedules/<id>"""
    with site.reading() as (session, now):
        row, shown = read_schedule(session, site, schedule_id)
        ticks = read_ticks(session, site.jobs, schedule_id, _TICKS)
        jobs = _enqueued(session, site, ticks)
        refusal = read_refusal(session, site.jobs, schedule_id)
    return site.render(
        "schedule.html",
        now,
        schedule=row,
        rule=rule_of(row.cron, row.timezone, now, row.next_run_at if row.enabled else None),
        arguments=shown.pretty,
        reason=shown.text(row.disabled_reason),
        refusal=shown.text(refusal),
        ticks=[(tick, jobs.get(tick.job_id)) for tick in ticks],
        is_known=row.task in site.jobs.tasks,
    )


def _enqueued(session: Session, site: Dashboard, ticks: Sequence[TickReport]) -> dict[int | None, Line]:
    """The jobs of these ticks, by id."""
    job: Any = site.jobs.Job
    ids = [tick.job_id for tick in ticks if tick.outcome == TickOutcome.enqueued]
    rows = session.execute(select(*columns(job)).where(job.id.in_(ids)), bind_arguments={"mapper": job}).all()
    return {line.job.id: line for line in lines(site, session, rows)}


def change(site: Dashboard, schedule_id: int, action: str) -> AnyResponse:
    """POST /schedules/<id>/<action>"""
    if action not in _ACTIONS:
        abort(404)
    with site.changing() as it:
        notice = _ACTIONS[action](it, schedule_id)
    return site.go(site.back(site.url("schedule", schedule_id=schedule_id)), notice)


def _enable(it: Changing, schedule_id: int) -> str:
    return f"Schedule {schedule_actions.enable(it, schedule_id).name} is enabled; it catches up on nothing."


def _disable(it: Changing, schedule_id: int) -> str:
    reason = request.form.get("reason", "").strip()[:500]
    if not reason:
        raise JobsError("Say why it is disabled: whoever finds it so will want to know.")
    return f"Schedule {schedule_actions.disable(it, schedule_id, reason).name} is disabled."


def _fire(it: Changing, schedule_id: int) -> str:
    return f"Job {schedule_actions.fire(it, schedule_id).id} is queued, beside the schedule's ticks."


_ACTIONS: dict[str, Callable[[Changing, int], str]] = {"enable": _enable, "disable": _disable, "fire": _fire}
