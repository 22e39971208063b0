"""Changing many jobs: asked for on a list, confirmed with the exact number, then done batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flask import Response, abort, request
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from sqla_jobs.actions import changes
from sqla_jobs.actions.bulk import Change, Kind, counted
from sqla_jobs.actions.erasure import ERASE
from sqla_jobs.actions.selection import Selection
from sqla_jobs.dashboard.data.filters import NAMES, BadFilter, read_filter
from sqla_jobs.dashboard.data.listing import columns
from sqla_jobs.dashboard.data.names import read_names
from sqla_jobs.dashboard.data.reading import PATIENCE
from sqla_jobs.dashboard.site import Dashboard
from sqla_jobs.models.types import JobState
from sqla_jobs.rules.checks import read_moment, read_priority
from sqla_jobs.rules.wording import plural

_SAMPLE = 5
_STRETCH = 50_000
"""Ids that one transaction looks through at most."""
_STEP = 1.0
"""Seconds that one request works."""
_MOST_IDS = 1_000


@dataclass(frozen=True)
class BulkAction:
    """A change as people know it. What it `asks` are fields of the form, from which it is `made`."""

    kind: Kind
    made: Callable[[], Change]
    verb: str
    past: str
    says: str
    asks: tuple[str, ...] = ()
    is_grave: bool = False


def _retry() -> Change:
    minutes, total = _whole("over"), _whole("total")
    return changes.retry_over(60.0 * minutes, total) if minutes and total else changes.RETRY


def _move() -> Change:
    return changes.move_to(queue=request.form.get("to_queue", "").strip() or None, priority=_priority())


def _priority() -> int | None:
    text = request.form.get("to_priority", "").strip()
    return read_priority(text) if text else None


def _reschedule() -> Change:
    return changes.reschedule_to(read_moment("run_at", request.form.get("run_at", "").strip()))


OFFERS = {
    "retry": BulkAction(
        changes.RETRY.kind,
        _retry,
        "Retry",
        "queued",
        "They are queued at once, unless you spread them, each with at least one attempt more.",
        asks=("over",),
    ),
    "move": BulkAction(
        changes.MOVE,
        _move,
        "Move",
        "moved",
        "They go to the end of the queue and the priority that you name; what you leave empty stays.",
        asks=("to_queue", "to_priority"),
    ),
    "reschedule": BulkAction(
        changes.RESCHEDULE,
        _reschedule,
        "Reschedule",
        "rescheduled",
        "They are not run before the time that you name.",
        asks=("run_at",),
    ),
    "cancel": BulkAction(
        changes.CANCEL.kind,
        lambda: changes.CANCEL,
        "Cancel",
        "cancelled, or asked to stop",
        "Those that wait end as cancelled; those that run are asked to stop.",
        is_grave=True,
    ),
    "erase": BulkAction(
        ERASE.kind,
        lambda: ERASE,
        "Erase",
        "erased",
        "Their arguments, results, errors, progress messages and unique keys are gone for good; the jobs stay, and "
        "cannot be retried.",
        is_grave=True,
    ),
    "delete": BulkAction(
        changes.DELETE.kind,
        lambda: changes.DELETE,
        "Delete",
        "deleted",
        "They are gone for good, with the record of their runs.",
        is_grave=True,
    ),
}


def offered(state: JobState | None) -> list[tuple[str, BulkAction]]:
    """What can be done to jobs of that state."""
    return [(name, offer) for name, offer in OFFERS.items() if state is None or state in offer.kind.states]


def _asked(site: Dashboard) -> tuple[str, BulkAction, Selection, dict[str, str], list[str]]:
    """What the form asks for: the change, for which jobs, and the fields that say so again."""
    action = request.form.get("action", "")
    if action not in OFFERS:
        abort(400, f"Unknown action {action!r:.40}; valid actions: {', '.join(OFFERS)}.")
    try:
        wanted = read_filter(site.jobs, request.form)
    except BadFilter as error:
        abort(400, str(error))
    if request.form.get("all"):
        meant = OFFERS[action].kind.meant(wanted.selection)
        return action, OFFERS[action], meant, {"all": "1", **wanted.given}, []
    ids = request.form.getlist("ids")
    if not ids:
        abort(400, "No job was selected: tick some first, or choose all that match the filter.")
    if len(ids) > _MOST_IDS or not all(one.isascii() and one.isdigit() and len(one) < 19 for one in ids):
        abort(400, f"Give ids of jobs, at most {_MOST_IDS:,} of them.")
    # with the filter of the list in which they were ticked: one that does not match it any more has changed
    return action, OFFERS[action], replace(wanted.selection, ids=tuple(map(int, ids))), dict(wanted.given), ids


def confirm(site: Dashboard) -> Response:
    """POST /jobs/change: how many it would be, and some of them."""
    action, offer, selection, fields, ids = _asked(site)
    job: Any = site.jobs.Job
    with site.reading() as (session, now):
        end = session.scalar(select(func.max(job.id))) or 0
        wanted = offer.kind.conditions(site.jobs.models, selection)
        sample = session.execute(select(*columns(job)).where(*wanted).order_by(job.id.desc()).limit(_SAMPLE)).all()
        selected = len(ids) if ids else None
        try:
            with session.begin_nested():
                by_state = offer.kind.count(session, site.jobs.models, selection)
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
        narrowed_to=offer.kind.by_default if _is_narrowed(offer.kind, fields) else (),
        selected=selected,
        half_searched=selection.half_searched,
        sample=shown,
        names=names,
        end=end,
        patience=PATIENCE,
        back=site.back(site.url("jobs")),
        filters=[(name, fields[name]) for name in NAMES if name in fields],
    )


def _is_narrowed(kind: Kind, fields: Mapping[str, str]) -> bool:
    """Whether all that match are meant, of some states only."""
    return "all" in fields and "state" not in fields and kind.by_default != kind.states


def run(site: Dashboard) -> Response:
    """POST /jobs/change/run: works for a second, and shows how far it is; the page then asks for the next."""
    action, offer, selection, fields, ids = _asked(site)
    until = _whole("until")
    last, seen, changed = _whole("last"), _whole("seen"), _whole("changed")
    start = _whole("start") or last
    change = offer.made()
    stop_at = time.monotonic() + _STEP
    while last < until:
        with site.changing() as changing:
            reach = min(until, last + _STRETCH) if not ids else until
            last, looked_at, done = change.batch(
                changing.session, site.jobs.models, selection, after=last, until=reach, before=changed
            )
            if done:
                hidden = offer.kind.hidden(selection, site.jobs.tasks)
                said: dict[str, Any] = {"jobs": ids} if ids else {"filter": selection.described(hidden=hidden)}
                changing.record(
                    f"{action} many", plural(done, "job"), changed=done, up_to=last, **said, **change.details
                )
        seen, changed = seen + looked_at, changed + done
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
        last=last,
        start=start,
        seen=seen,
        changed=changed,
        total=_whole("total"),
        asked={name: request.form.get(name, "") for name in offer.asks},
        is_done=last >= until,
        back=site.back(site.url("jobs")),
    )


def _whole(name: str) -> int:
    text = request.form.get(name, "").strip() or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        abort(400, f"{name} must be an integer, got {text!r:.40}")
    return int(text)
