"""The page of limits, and the form that overrides a declared limit or removes an override."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response, abort, request
from werkzeug.wrappers import Response as AnyResponse

from sqla_jobs.actions import limits as actions
from sqla_jobs.actions.limits import UNSET
from sqla_jobs.dashboard.data.limit_use import read_use
from sqla_jobs.dashboard.data.names import read_names
from sqla_jobs.dashboard.site import Dashboard
from sqla_jobs.errors import JobsError
from sqla_jobs.monitoring.limits import read_limits
from sqla_jobs.rules.keys import key_in
from sqla_jobs.rules.value_checks import read_number
from sqla_jobs.runtime.metrics import LimitStatus

_NUMBERS = ("running", "rate", "per")
_FIELDS = ("which", "key", "queue", *_NUMBERS)


def show(site: Dashboard) -> Response:
    """GET /limits"""
    with site.reading() as (session, now):
        found = read_limits(session, site.jobs)
        uses = read_use(session, site.jobs, found)
    return site.render("limits.html", now, limits=found, uses=uses)


def edit(site: Dashboard) -> Response:
    """GET /limits/set: the form of the limit `gate`, or of a new one."""
    one = _read(site, request.args.get("gate"))
    values = {} if one is None else {"running": one.running, "rate": one.rate, "per": one.per}
    given = {name: f"{value:.12g}" for name, value in values.items() if value is not None}
    return _form(site, one, dict.fromkeys(_FIELDS, "") | given)


def save(site: Dashboard) -> AnyResponse:
    """POST /limits/set"""
    one = _read(site, request.form.get("gate"))
    given = {name: request.form.get(name, "").strip() for name in _FIELDS}
    try:
        numbers = _numbers(given)
        key = key_in(given["key"]) if given["key"] else UNSET
        target = (
            actions.target(site.jobs.tasks, given["which"] or None, queue=given["queue"] or None, key=key)
            if one is None
            else actions.target_of_row(one.gate, one.tasks)
        )
        with site.changing() as it:
            actions.set_limit(it, target, **numbers)
    except JobsError as error:
        return _form(site, one, given, error)
    return site.done("set", "limits")


def clear(site: Dashboard) -> AnyResponse:
    """POST /limits/clear"""
    one = _read(site, request.form.get("gate", ""))
    with site.changing() as it:
        if one is not None:
            actions.clear_limit(it, actions.target_of_row(one.gate, one.tasks))
    return site.done("cleared", "limits")


def _read(site: Dashboard, gate: str | None) -> LimitStatus | None:
    """Return the limit of that gate; None for a new limit."""
    if gate is None:
        return None
    with site.reading() as (session, _):
        found = next((one for one in read_limits(session, site.jobs) if one.gate == gate), None)
    if found is None:
        abort(404, "There is no such limit in effect; somebody may have taken it back.")
    return found


def _numbers(given: Mapping[str, str]) -> Any:
    """Parse the arguments of `set_limit`. Raises `ArgumentsError`."""
    kinds = ((name, text, float if name == "per" else int) for name in _NUMBERS if (text := given[name]))
    return dict.fromkeys(_NUMBERS) | {name: read_number(name, text, kind) for name, text, kind in kinds}


def _form(
    site: Dashboard, one: LimitStatus | None, given: Mapping[str, str], error: JobsError | None = None
) -> Response:
    jobs = site.jobs
    with site.reading() as (session, now):
        names = read_names(session, jobs)
    gates = [gate for task in jobs.tasks.values() for gate in task._declaration.gates if gate.limit is not None]
    return site.render(
        "limit_form.html",
        now,
        400 if error else 200,
        limit=one,
        given=given,
        error=None if error is None else str(error),
        limited=sorted({*jobs.tasks, *(gate.row[1:].partition("=")[0] for gate in gates)}),
        queues=names.queues,
    )
