"""The pages of schedules, the form that adds or edits one, and other changes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import sqlalchemy as sa
from flask import Response, abort, request
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from sqla_jobs.actions import schedules as schedule_actions
from sqla_jobs.cron import Cron
from sqla_jobs.dashboard.data.listing import columns
from sqla_jobs.dashboard.data.names import read_names
from sqla_jobs.dashboard.site import Dashboard
from sqla_jobs.dashboard.views.jobs_list import Line, lines
from sqla_jobs.errors import ArgumentsError, ConfigurationError, JobsError
from sqla_jobs.models.types import CatchUp, Overlap, TickOutcome
from sqla_jobs.monitoring.finding import ask, readable
from sqla_jobs.monitoring.ticks import TickReport, read_refusal, read_ticks
from sqla_jobs.monitoring.without_secrets import ShownSchedule, read_schedules
from sqla_jobs.rules import json_text
from sqla_jobs.rules.value_checks import read_number

_RECENT = 8
_TICKS = 20
_UPCOMING = 5
_EMPTY = {
    "name": "",
    "task": "",
    "cron": "",
    "timezone": "UTC",
    "args": "{}",
    "queue": "",
    "priority": "",
    "catch_up": "latest",
    "overlap": "allow",
    "jitter": "0",
}


@dataclass(frozen=True)
class Rule:
    """A schedule's rule in words, with its next times."""

    description: str
    upcoming: list[datetime]
    error: str | None = None


def _rule_of(cron: str, timezone: str, now: datetime, first: datetime | None = None, *, count: int = _UPCOMING) -> Rule:
    """Describe a rule in English, with its next times in its time zone. For an invalid rule, return its error."""
    try:
        rule = Cron.parse(cron, timezone)
        said, upcoming = rule.description, [first if first is not None and first > now else rule.next_after(now)]
        while len(upcoming) < count:
            upcoming.append(rule.next_after(upcoming[-1]))
    except ConfigurationError as error:
        return Rule("This rule cannot be read", [], str(error))
    return Rule(said, [tick.astimezone(ZoneInfo(timezone)) for tick in upcoming])


def show_all(site: Dashboard) -> Response:
    """GET /schedules"""
    with site.reading() as (session, now):
        found = read_schedules(session, site.jobs, most=1000)
        recent = _recent(session, site)
    listed = [
        (
            one.row,
            _rule_of(one.row.cron, one.row.timezone, now, one.row.next_run_at, count=1),
            recent[one.row.id],
            one.disabled_reason,
        )
        for one in found
    ]
    return site.render("schedules.html", now, listed=listed)


def _recent(session: Session, site: Dashboard) -> dict[int, list[Any]]:
    """Return the last jobs of each schedule, the newest first."""
    job: Any = site.jobs.Job
    schedule: Any = site.jobs.Schedule
    last = (
        sa.select(job.id, job.state, job.scheduled_for, job.finished_at)
        .where(job.schedule_id == schedule.id, job.scheduled_for.is_not(None))
        .order_by(job.scheduled_for.desc())
        .limit(_RECENT)
        .lateral("last")
    )
    query = sa.select(schedule.id.label("schedule_id"), *map(readable, last.c)).join_from(schedule, last, sa.true())
    found = defaultdict[int, list[Any]](list)
    for row in ask(session, site.jobs, query.order_by(schedule.id, last.c.scheduled_for.desc())):
        found[row.schedule_id].append(row)
    return found


def _read_schedule(session: Session, site: Dashboard, schedule_id: int) -> ShownSchedule:
    """Return a schedule. Raises `UnknownSchedule`."""
    found = read_schedules(session, site.jobs, site.jobs.Schedule.id == schedule_id)
    if not found:
        raise schedule_actions.UnknownSchedule(f"There is no schedule {schedule_id}; it may have been removed.")
    return found[0]


def show(site: Dashboard, schedule_id: int) -> Response:
    """GET /schedules/<id>"""
    with site.reading() as (session, now):
        one = _read_schedule(session, site, schedule_id)
        ticks = read_ticks(session, site.jobs, schedule_id, _TICKS)
        jobs = _enqueued(session, site, ticks)
        refusal = read_refusal(session, site.jobs, schedule_id)
    row = one.row
    return site.render(
        "schedule.html",
        now,
        schedule=row,
        rule=_rule_of(row.cron, row.timezone, now, row.next_run_at if row.enabled else None),
        arguments=one.shown.pretty,
        reason=one.disabled_reason,
        refusal=one.shown.text(refusal),
        ticks=[(tick, jobs.get(tick.job_id)) for tick in ticks],
        is_known=row.task in site.jobs.tasks,
    )


def _enqueued(session: Session, site: Dashboard, ticks: Sequence[TickReport]) -> dict[int | None, Line]:
    """Return the jobs of these ticks, by id."""
    job: Any = site.jobs.Job
    ids = [tick.job_id for tick in ticks if tick.outcome == TickOutcome.enqueued]
    rows = ask(session, site.jobs, sa.select(*columns(job)).where(job.id.in_(ids))).all()
    return {line.job.id: line for line in lines(site, session, rows)}


def change(site: Dashboard, schedule_id: int, action: str) -> AnyResponse:
    """POST /schedules/<id>/<action>"""
    with site.changing() as it:
        match action:
            case "enable":
                schedule_actions.enable(it, schedule_id)
            case "disable":
                reason = request.form.get("reason", "").strip()[:500]
                if not reason:
                    raise JobsError("Say why it is disabled: whoever finds it so will want to know.")
                schedule_actions.disable(it, schedule_id, reason)
            case "fire":
                return site.done("fire", "job", job_id=schedule_actions.fire(it, schedule_id).id)
            case _:
                abort(404)
    return site.done(action, "schedule", schedule_id=schedule_id)


def new(site: Dashboard) -> Response:
    """GET /schedules/new"""
    return _form(site, {**_EMPTY, "task": request.args.get("task", "")}, None)


def add(site: Dashboard) -> AnyResponse:
    """POST /schedules/new"""
    given = {name: request.form.get(name, "").strip() for name in _EMPTY}
    try:
        values = _values(site, given, hidden={})
        with site.changing() as it:
            schedule_id = schedule_actions.add(it, given["name"], values).id
    except JobsError as error:
        return _form(site, given, None, error)
    return site.done("added", "schedule", schedule_id=schedule_id)


def edit(site: Dashboard, schedule_id: int) -> Response:
    """GET /schedules/<id>/edit"""
    with site.reading() as (session, _):
        one = _read_schedule(session, site, schedule_id)
    row, shown = one.row, one.shown
    given = {name: str(getattr(row, name, "")) for name in _EMPTY}
    visible = {name: value for name, value in (shown.args or {}).items() if name not in shown.withheld}
    given["args"] = json_text.pretty(visible)
    given["jitter"] = f"{row.jitter:g}"
    return _form(site, given, row)


def save(site: Dashboard, schedule_id: int) -> AnyResponse:
    """POST /schedules/<id>/edit"""
    given = {name: request.form.get(name, "").strip() for name in _EMPTY}
    row: Any = None
    try:
        with site.changing() as it:
            row = schedule_actions.hold(it, schedule_id)
            given["name"] = row.name
            hidden = _withheld(site, row.task, row.args) if given["task"] == row.task else {}
            schedule_actions.edit(it, schedule_id, _values(site, given, hidden=hidden))
    except schedule_actions.UnknownSchedule:
        raise
    except JobsError as error:
        with site.reading() as (session, _):
            row = _read_schedule(session, site, schedule_id).row
        return _form(site, given, row, error)
    return site.done("saved", "schedule", schedule_id=schedule_id)


def _withheld(site: Dashboard, task: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that the form masked. These arguments are kept unless new ones are given."""
    shown = site.jobs.tasks.shown(task, args)
    return {name: value for name, value in args.items() if shown[name] != value}


def _values(site: Dashboard, given: Mapping[str, str], *, hidden: Mapping[str, Any]) -> dict[str, Any]:
    """Parse the form's fields into column values. Raises `JobsError`."""
    jobs, task = site.jobs, given["task"]
    defaults = jobs.tasks[task]._declaration.defaults if task in jobs.tasks else {"queue": "default", "priority": 0}
    return {
        **{name: given[name] for name in ("task", "cron", "catch_up", "overlap")},
        "timezone": given["timezone"] or "UTC",
        "queue": given["queue"] or defaults["queue"],
        "priority": read_number("priority", given["priority"] or str(defaults["priority"]), int),
        "jitter": read_number("jitter", given["jitter"] or "0", float),
        "args": {**hidden, **_arguments(given["args"] or "{}")},
    }


def _arguments(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArgumentsError(f"the arguments are not valid JSON: {error!s:.200}") from None
    if not isinstance(found, dict):
        raise ArgumentsError('the arguments must be a JSON object, such as {"region": "fr"}, or {} for none')
    arguments: dict[str, Any] = found
    return arguments


def _form(site: Dashboard, given: Mapping[str, str], row: Any, error: JobsError | None = None) -> Response:
    with site.reading() as (session, now):
        names = read_names(session, site.jobs)
    return site.render(
        "schedule_form.html",
        now,
        400 if error else 200,
        given=given,
        schedule=row,
        error=None if error is None else str(error),
        preview=_rule_of(given["cron"], given["timezone"] or "UTC", now) if given["cron"] and not error else None,
        names=names,
        timezones=sorted(available_timezones()),
        catch_ups=list(CatchUp),
        overlaps=list(Overlap),
        hides=row is not None and row.task in site.jobs.tasks.sensitive(),
    )
