"""Changes to one job from its page, or to many from a list. The latter are first confirmed, then made in batches."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from flask import Response, abort, request
from werkzeug.wrappers import Response as AnyResponse

from sqla_jobs.actions import signals
from sqla_jobs.actions.action import ACTIONS, Action
from sqla_jobs.actions.bulk_change import Progress, counted, left_alone
from sqla_jobs.actions.selection import Selection
from sqla_jobs.dashboard.data.filters import BadFilter, read_filter
from sqla_jobs.dashboard.data.listing import columns
from sqla_jobs.dashboard.data.names import read_names
from sqla_jobs.dashboard.site import Dashboard
from sqla_jobs.errors import JobsError
from sqla_jobs.models.types import JobState
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.monitoring.without_secrets import without_secrets

_SAMPLE = 5
_STRETCH = 50_000
"""The maximum number of ids that one transaction reads."""
_STEP = 1.0
"""Seconds of work in one request."""
_MOST_IDS = 1_000


def change_one(site: Dashboard, job_id: int, action: str) -> AnyResponse:
    """POST /jobs/<id>/<action>"""
    if action not in ACTIONS:
        abort(404)
    change = ACTIONS[action].made(request.form)
    with site.changing() as it:
        if not change.one(it, job_id):
            raise JobsError(
                f"job {job_id} is left alone: its state or its unique key forbids it, or something needs it"
            )
    return site.done(action, "jobs") if change.removes else site.done(action, "job", job_id=job_id)


def signal(site: Dashboard, job_id: int) -> AnyResponse:
    """POST /jobs/<id>/signal"""
    name = request.form.get("signal", "").strip()
    payload = signals.read_payload(request.form.get("payload", ""))
    with site.changing() as it:
        if not signals.send(it, job_id, name, payload):
            raise JobsError(f"job {job_id} has ended, and receives no signal")
    return site.done("sent", "job", job_id=job_id)


def offered(state: JobState | None) -> list[Action]:
    """Return the actions that are offered for jobs in that state."""
    return [action for action in ACTIONS.values() if state is None or state in action.change.states]


def _asked(site: Dashboard) -> tuple[Action, Selection, dict[str, Any]]:
    """Return the form's action, its selection of jobs, and the values of a page that repeats the form."""
    name, ids = request.form.get("action", ""), request.form.getlist("ids")
    if name not in ACTIONS:
        abort(400, f"Unknown action {name!r:.40}; valid actions: {', '.join(ACTIONS)}.")
    try:
        wanted = read_filter(site.jobs, request.form)
    except BadFilter as error:
        abort(400, str(error))
    action, given = ACTIONS[name], dict(wanted.given)
    values = {"action": action, "filters": given, "back": site.url("jobs", **given)}
    if request.form.get("all"):
        return action, action.change.meant(wanted.selection), values | {"fields": {"all": "1", **given}, "ids": []}
    if not ids:
        abort(400, "No job was selected: tick some first, or choose all that match the filter.")
    if len(ids) > _MOST_IDS or not all(one.isascii() and one.isdigit() and len(one) < 19 for one in ids):
        abort(400, f"Give ids of jobs, at most {_MOST_IDS:,} of them.")
    # keep the list's filter: a ticked job that no longer matches has changed since then, and is left alone
    return action, replace(wanted.selection, ids=tuple(map(int, ids))), values | {"fields": given, "ids": ids}


def confirm(site: Dashboard) -> Response:
    """POST /jobs/change: show the number of selected jobs, and some of them."""
    action, selection, values = _asked(site)
    jobs, change = site.jobs, action.change
    job: Any = jobs.Job
    with site.reading() as (session, now):
        end = ask(session, jobs, sa.select(sa.func.max(job.id))).scalar() or 0
        some = sa.select(*columns(job)).where(*change.conditions(jobs._models, selection)).order_by(job.id.desc())
        sample = ask(session, jobs, some.limit(_SAMPLE)).all()
        by_state = change.count(session, jobs._models, selection)
        names = read_names(session, jobs)
    is_narrowed = not selection.ids and "state" not in values["filters"] and change.by_default != change.states
    return site.render(
        "confirm.html",
        now,
        **values,
        count=sum(by_state.values()),
        counted=counted(by_state),
        narrowed_to=change.by_default if is_narrowed else (),
        selected=len(selection.ids) or None,
        half_searched=selection.half_searched,
        sample=[(row, without_secrets(site.jobs, row.task, row.args_text or "").summary) for row in sample],
        names=names,
        end=end,
    )


def run(site: Dashboard) -> Response:
    """POST /jobs/change/run: work for a second and show the progress. The page then sends the next request."""
    action, selection, values = _asked(site)
    until, total = _whole("until"), _whole("total")
    left = tuple(int(one) for one in request.form.get("left", "").split() if one.isascii() and one.isdigit())
    done = Progress(_whole("seen"), _whole("changed"), left, _whole("last"))
    stretch = None if selection.ids else _STRETCH
    change = action.made(request.form).for_jobs(selection, total)
    stop_at = time.monotonic() + _STEP
    for progress in change.in_batches(site.changing, selection, done=done, until=until, stretch=stretch):
        done = progress
        if time.monotonic() > stop_at:
            break
    return site.render(
        "progress.html",
        None,
        **values,
        until=until,
        done=done,
        alone=left_alone(done),
        total=total,
        asked={field.name: request.form.get(field.name, "") for field in action.fields},
        is_done=done.last >= until,
    )


def _whole(name: str) -> int:
    text = request.form.get(name, "").strip() or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        abort(400, f"{name} must be an integer, got {text!r:.40}")
    return int(text)
