"""Changes to one job from its page, or to many from a list. The latter are first confirmed, then made in batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from flask import Response, abort, request
from sqlalchemy.exc import DBAPIError
from werkzeug.wrappers import Response as AnyResponse

from sqla_jobs.actions import jobs as actions
from sqla_jobs.actions import signals
from sqla_jobs.actions.bulk_change import Change, Progress, counted
from sqla_jobs.actions.selection import Selection
from sqla_jobs.dashboard.data.filters import BadFilter, read_filter
from sqla_jobs.dashboard.data.listing import columns
from sqla_jobs.dashboard.data.names import read_names
from sqla_jobs.dashboard.data.reading import PATIENCE
from sqla_jobs.dashboard.site import Dashboard
from sqla_jobs.errors import JobsError
from sqla_jobs.models.types import JobState
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.monitoring.steps import kept
from sqla_jobs.monitoring.without_secrets import without_secrets
from sqla_jobs.rules.value_checks import read_moment, read_priority

_SAMPLE = 5
_STRETCH = 50_000
"""The maximum number of ids that one transaction reads."""
_STEP = 1.0
"""Seconds of work in one request."""
_MOST_IDS = 1_000


@dataclass(frozen=True)
class Offer:
    """A change that a form offers. `asks` names the fields of the form, from which `made` creates the change."""

    change: type[Change]
    made: Callable[[], Change]
    done: str
    says: str
    asks: tuple[str, ...] = ()
    is_grave: bool = False

    @property
    def verb(self) -> str:
        return self.change.name.capitalize()


def _retry() -> Change:
    minutes, total = _whole("over"), _whole("total")
    return actions.Retry(60.0 * minutes, total) if minutes and total else actions.Retry()


def _move() -> Change:
    queue, priority = request.form.get("to_queue", "").strip(), request.form.get("to_priority", "").strip()
    return actions.Move(queue or None, read_priority(priority) if priority else None)


def _reschedule() -> Change:
    return actions.Reschedule(read_moment("run_at", request.form.get("run_at", "").strip()))


OFFERS = {
    offer.change.name: offer
    for offer in (
        Offer(
            actions.Retry,
            _retry,
            "queued",
            "They are queued at once, unless you spread them, each with at least one attempt more.",
            asks=("over",),
        ),
        Offer(
            actions.Move,
            _move,
            "moved",
            "They go to the end of the queue and the priority that you name; what you leave empty stays.",
            asks=("to_queue", "to_priority"),
        ),
        Offer(
            actions.Reschedule,
            _reschedule,
            "rescheduled",
            "They are not run before the time that you name.",
            asks=("run_at",),
        ),
        Offer(
            actions.Cancel,
            actions.Cancel,
            "cancelled, or asked to stop",
            "Those that wait end as cancelled; those that run are asked to stop.",
            is_grave=True,
        ),
        Offer(
            actions.Erase,
            actions.Erase,
            "erased",
            "Their arguments, results, errors, progress messages and unique keys are gone for good; the jobs stay, and "
            "cannot be retried.",
            is_grave=True,
        ),
        Offer(
            actions.Delete,
            actions.Delete,
            "deleted",
            "They are gone for good, with the record of their runs.",
            is_grave=True,
        ),
    )
}


def change_one(site: Dashboard, job_id: int, action: str) -> AnyResponse:
    """POST /jobs/<id>/<action>"""
    if action not in OFFERS:
        abort(404)
    change = OFFERS[action].made()
    with site.changing() as it:
        if not change.one(it, job_id):
            raise JobsError(change.refusal(it.session, it.models, job_id))
    return site.done(action, "jobs") if change.removes else site.done(action, "job", job_id=job_id)


def signal(site: Dashboard, job_id: int) -> AnyResponse:
    """POST /jobs/<id>/signal"""
    name = request.form.get("signal", "").strip()
    payload = signals.read_payload(request.form.get("payload", ""))
    with site.changing() as it:
        if not signals.send(it, job_id, name, payload):
            raise JobsError(f"job {job_id} has ended, and receives no signal")
        is_kept = kept(it.session, site.jobs, job_id, name)
    return site.done("kept" if is_kept else "sent", "job", job_id=job_id)


def offered(state: JobState | None) -> list[tuple[str, Offer]]:
    """Return the changes that are offered for jobs in that state."""
    return [(name, offer) for name, offer in OFFERS.items() if state is None or state in offer.change.states]


def _asked(site: Dashboard) -> tuple[Offer, Selection, dict[str, Any]]:
    """Return the form's change, its selection of jobs, and the values of a page that repeats the form."""
    action, ids = request.form.get("action", ""), request.form.getlist("ids")
    if action not in OFFERS:
        abort(400, f"Unknown action {action!r:.40}; valid actions: {', '.join(OFFERS)}.")
    try:
        wanted = read_filter(site.jobs, request.form)
    except BadFilter as error:
        abort(400, str(error))
    offer, given = OFFERS[action], dict(wanted.given)
    values = {"action": action, "offer": offer, "filters": given, "back": site.url("jobs", **given)}
    if request.form.get("all"):
        return offer, offer.change.meant(wanted.selection), values | {"fields": {"all": "1", **given}, "ids": []}
    if not ids:
        abort(400, "No job was selected: tick some first, or choose all that match the filter.")
    if len(ids) > _MOST_IDS or not all(one.isascii() and one.isdigit() and len(one) < 19 for one in ids):
        abort(400, f"Give ids of jobs, at most {_MOST_IDS:,} of them.")
    # keep the list's filter: a ticked job that no longer matches has changed since then, and is left alone
    return offer, replace(wanted.selection, ids=tuple(map(int, ids))), values | {"fields": given, "ids": ids}


def confirm(site: Dashboard) -> Response:
    """POST /jobs/change: show the number of selected jobs, and some of them."""
    offer, selection, values = _asked(site)
    jobs, change = site.jobs, offer.change
    job: Any = jobs.Job
    with site.reading() as (session, now):
        end = ask(session, jobs, sa.select(sa.func.max(job.id))).scalar() or 0
        some = sa.select(*columns(job)).where(*change.conditions(jobs._models, selection)).order_by(job.id.desc())
        sample = ask(session, jobs, some.limit(_SAMPLE)).all()
        try:
            with session.begin_nested():
                by_state = change.count(session, jobs._models, selection)
                count = sum(by_state.values())
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != "57014":
                raise
            count, by_state = None, {}
        names = read_names(session, jobs) if "to_queue" in offer.asks else None
    is_narrowed = not selection.ids and "state" not in values["filters"] and change.by_default != change.states
    return site.render(
        "confirm.html",
        now,
        **values,
        count=count,
        counted=counted(by_state),
        narrowed_to=change.by_default if is_narrowed else (),
        selected=len(selection.ids) or None,
        half_searched=selection.half_searched,
        sample=[(row, without_secrets(site.jobs, row.task, row.args_text or "").summary) for row in sample],
        names=names,
        end=end,
        patience=PATIENCE,
    )


def run(site: Dashboard) -> Response:
    """POST /jobs/change/run: work for a second and show the progress. The page then sends the next request."""
    offer, selection, values = _asked(site)
    until, done = _whole("until"), Progress(_whole("seen"), _whole("changed"), _whole("last"))
    stretch = None if selection.ids else _STRETCH
    stop_at = time.monotonic() + _STEP
    for progress in offer.made().in_batches(site.changing, selection, done=done, until=until, stretch=stretch):
        done = progress
        if time.monotonic() > stop_at:
            break
    return site.render(
        "progress.html",
        None,
        **values,
        until=until,
        done=done,
        total=_whole("total"),
        asked={name: request.form.get(name, "") for name in offer.asks},
        is_done=done.last >= until,
    )


def _whole(name: str) -> int:
    text = request.form.get(name, "").strip() or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        abort(400, f"{name} must be an integer, got {text!r:.40}")
    return int(text)
