"""The timeline of a job. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqla_jobs.models.types import ENDED, JobState
from sqla_jobs.rules.wording import duration


@dataclass(frozen=True)
class Moment:
    """One point of a timeline; `state` determines its color."""

    title: str
    at: datetime | None
    state: str
    note: str = ""
    is_ahead: bool = False


def timeline(job: Any, runs: Sequence[Any], *, is_whole: bool) -> list[Moment]:
    """Return the events of a job from its creation to now. `runs` are its attempts, the oldest first."""
    events = [Moment("Created", job.created_at, "scheduled", "by a schedule" if job.schedule_id is not None else "")]
    if not is_whole:
        events.append(Moment("Earlier attempts", None, "snoozed", "on an older page of its runs"))
    events += [_ended(run) for run in runs]
    last = runs[-1].finished_at if runs else None
    if job.cancel_requested_at is not None:
        events.append(Moment("Cancel asked for", job.cancel_requested_at, "cancelled"))
    match job.state:
        case JobState.blocked:
            events.append(Moment("Blocked", None, "blocked", "until the jobs before it have ended", is_ahead=True))
        case JobState.scheduled:
            events.append(Moment("Due", job.run_at, "scheduled", "then it is queued", is_ahead=True))
        case JobState.queued:
            events.append(Moment("Queued", job.run_at, "queued", f"in {job.queue}, for a worker that is free"))
        case JobState.running:
            events.append(Moment(f"Attempt {job.attempt} started", job.started_at, "running", "and runs"))
        case _:
            if (
                job.state in ENDED and last != job.finished_at
            ):  # it was cancelled, or changed by SQL, without an attempt
                events.append(Moment(str(job.state).capitalize(), job.finished_at, str(job.state)))
    ahead = [event for event in events if event.is_ahead]
    return sorted((e for e in events if not e.is_ahead), key=lambda e: e.at or job.created_at) + ahead


def _ended(run: Any) -> Moment:
    took = duration(max(0.0, (run.finished_at - run.started_at).total_seconds()))
    words = {
        "retried": "failed, and is tried again",
        "lost": "was lost with its process",
        "snoozed": "asked to come back later",
    }
    said = words.get(str(run.outcome), str(run.outcome))
    note = f"after {took}" + (f": {run.error_type}" if run.error_type else "")
    return Moment(f"Attempt {run.attempt} {said}", run.finished_at, str(run.outcome), note)
