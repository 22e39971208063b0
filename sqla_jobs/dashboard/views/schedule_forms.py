"""Adding a schedule, and editing one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast
from zoneinfo import available_timezones

from flask import Response, request
from werkzeug.wrappers import Response as AnyResponse

from sqla_jobs.actions import schedules as schedule_actions
from sqla_jobs.dashboard.data.names import read_names
from sqla_jobs.dashboard.render import json_text
from sqla_jobs.dashboard.site import Dashboard
from sqla_jobs.dashboard.views.schedules import read_schedule, rule_of
from sqla_jobs.errors import ArgumentsError, JobsError
from sqla_jobs.models.types import CatchUp, Overlap

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
    return site.go(site.url("schedule", schedule_id=schedule_id), f"Schedule {given['name']} is added.")


def edit(site: Dashboard, schedule_id: int) -> Response:
    """GET /schedules/<id>/edit"""
    with site.reading() as (session, _):
        row, shown = read_schedule(session, site, schedule_id)
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
            row, _shown = read_schedule(session, site, schedule_id)
        return _form(site, given, row, error)
    return site.go(site.url("schedule", schedule_id=schedule_id), f"Schedule {given['name']} is saved.")


def _withheld(site: Dashboard, task: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that the form did not show: they stay unless new ones are given."""
    shown = site.jobs.tasks.shown(task, args)
    return {name: value for name, value in args.items() if shown[name] != value}


def _values(site: Dashboard, given: Mapping[str, str], *, hidden: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the form as a row has them. Raises `JobsError`."""
    jobs, task = site.jobs, given["task"]
    defaults = jobs.tasks[task].declaration.defaults if task in jobs.tasks else {"queue": "default", "priority": 0}
    return {
        **{name: given[name] for name in ("task", "cron", "catch_up", "overlap")},
        "timezone": given["timezone"] or "UTC",
        "queue": given["queue"] or defaults["queue"],
        "priority": _number("priority", given["priority"] or str(defaults["priority"]), int),
        "jitter": _number("jitter", given["jitter"] or "0", float),
        "args": {**hidden, **_arguments(given["args"] or "{}")},
    }


def _number(name: str, text: str, kind: type[int] | type[float]) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ArgumentsError(f"{name} must be a number, got {text!r:.40}") from None


def _arguments(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArgumentsError(f"the arguments are not valid JSON: {error!s:.200}") from None
    if not isinstance(found, dict):
        raise ArgumentsError('the arguments must be a JSON object, such as {"region": "fr"}, or {} for none')
    return cast("dict[str, Any]", found)


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
        preview=rule_of(given["cron"], given["timezone"] or "UTC", now) if given["cron"] and not error else None,
        names=names,
        timezones=sorted(available_timezones()),
        catch_ups=list(CatchUp),
        overlaps=list(Overlap),
        hides=row is not None and row.task in site.jobs.tasks.sensitive(),
    )
