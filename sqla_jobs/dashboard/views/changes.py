"""Changes to one job from its page, or to many from a list. The latter are first confirmed, then made in batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flask import Response, abort, request
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError
from werkzeug.wrappers import Response as AnyResponse

from sqla_jobs.actions import jobs as actions
from sqla_jobs.actions import signals
from sqla_jobs.actions.change import Change, Progress, counted
from sqla_jobs.actions.selection import Selection
from sqla_jobs.dashboard.data.filters import NAMES, BadFilter, read_filter
from sqla_jobs.dashboard.data.listing import columns
from sqla_jobs.dashboard.data.names import read_names
from sqla_jobs.dashboard.data.reading import PATIENCE
from sqla_jobs.dashboard.site import Dashboard
from sqla_jobs.errors import JobsError
from sqla_jobs.models.types import JobState
from sqla_jobs.monitoring.steps import kept
from sqla_jobs.rules.checks import read_moment, read_priority

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


def _asked(site: Dashboard) -> tuple[str, Offer, Selection, dict[str, str], list[str]]:
    """Return the form's action, its change, the selection of jobs, and the fields and ids that repeat the form."""
    action = request.form.get("action", "")
    if action not in OFFERS:
        abort(400, f"Unknown action {action!r:.40}; valid actions: {', '.join(OFFERS)}.")
    try:
        wanted = read_filter(site.jobs, request.form)
    except BadFilter as error:
        abort(400, str(error))
    if request.form.get("all"):
        meant = OFFERS[action].change.meant(wanted.selection)
        return action, OFFERS[action], meant, {"all": "1", **wanted.given}, []
    ids = request.form.getlist("ids")
    if not ids:
        abort(400, "No job was selected: tick some first, or choose all that match the filter.")
    if len(ids) > _MOST_IDS or not all(one.isascii() and one.isdigit() and len(one) < 19 for one in ids):
        abort(400, f"Give ids of jobs, at most {_MOST_IDS:,} of them.")
    # keep the list's filter: a ticked job that no longer matches has changed since then, and is left alone
    return action, OFFERS[action], replace(wanted.selection, ids=tuple(map(int, ids))), dict(wanted.given), ids


def confirm(site: Dashboard) -> Response:
    """POST /jobs/change: show the number of selected jobs, and some of them."""
    action, offer, selection, fields, ids = _asked(site)
    job: Any = site.jobs.Job
    with site.reading() as (session, now):
        end = session.scalar(select(func.max(job.id))) or 0
        wanted = offer.change.conditions(site.jobs.models, selection)
        sample = session.execute(select(*columns(job)).where(*wanted).order_by(job.id.desc()).limit(_SAMPLE)).all()
        selected = len(ids) if ids else None
        try:
            with session.begin_nested():
                by_state = offer.change.count(session, site.jobs.models, selection)
                count = sum(by_state.values())
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != "57014":
                raise
            count, by_state = None, {}
        names = read_names(session, site.jobs) if "to_queue" in offer.asks else None
        shown = [(row, site.shown(row.task, row.args_text or "").summary) for row in sample]
    return site.render(
        "confirm.html",
        now,
        action=action,
        offer=offer,
        fields=fields,
        ids=ids,
        count=count,
        counted=counted(by_state),
        narrowed_to=offer.change.by_default if _is_narrowed(offer.change, fields) else (),
        selected=selected,
        half_searched=selection.half_searched,
        sample=shown,
        names=names,
        end=end,
        patience=PATIENCE,
        back=site.url("jobs", **{name: fields[name] for name in NAMES if name in fields}),
        filters=[(name, fields[name]) for name in NAMES if name in fields],
    )


def _is_narrowed(change: type[Change], fields: Mapping[str, str]) -> bool:
    """Return whether the change applies only to matching jobs in its default states."""
    return "all" in fields and "state" not in fields and change.by_default != change.states


def run(site: Dashboard) -> Response:
    """POST /jobs/change/run: work for a second and show the progress. The page then sends the next request."""
    action, offer, selection, fields, ids = _asked(site)
    until, done = _whole("until"), Progress(_whole("seen"), _whole("changed"), _whole("last"))
    start = _whole("start") or done.last
    stretch = None if ids else _STRETCH
    stop_at = time.monotonic() + _STEP
    for progress in offer.made().in_batches(site.changing, selection, done=done, until=until, stretch=stretch):
        done = progress
        if time.monotonic() > stop_at:
            break
    return site.render(
        "progress.html",
        None,
        action=action,
        offer=offer,
        fields=fields,
        ids=ids,
        until=until,
        last=done.last,
        start=start,
        seen=done.seen,
        changed=done.changed,
        total=_whole("total"),
        asked={name: request.form.get(name, "") for name in offer.asks},
        is_done=done.last >= until,
        back=site.url("jobs", **{name: fields[name] for name in NAMES if name in fields}),
    )


def _whole(name: str) -> int:
    text = request.form.get(name, "").strip() or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        abort(400, f"{name} must be an integer, got {text!r:.40}")
    return int(text)
