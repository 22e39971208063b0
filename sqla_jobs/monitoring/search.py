"""Search for a text in jobs, runs, schedules and the audit log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.actions.selection import without
from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import ask, readable

_AROUND = 30
"""The number of characters shown before and after the text."""


@dataclass(frozen=True, slots=True)
class Place:
    """One occurrence of the text."""

    where: str
    """`arguments`, `headers`, `unique key`, `progress`, `result`, `error`, `schedule` or `audit`."""
    job_id: int | None
    """The job that contains the text, or whose run contains it."""
    name: str
    """The task, the schedule, or the subject of an audit log entry."""
    at: datetime | None
    """The time of the job's enqueue, the run's end, the schedule's next tick or the audit log entry."""
    found: str
    """The text with its surroundings."""


def find(session: Session, jobs: Jobs[Any], words: str, most: int) -> Iterator[Place]:
    """Yield the newest occurrences of `words`, at most `most` of each kind. Scans whole tables.

    Skips sensitive arguments. If a task has sensitive arguments, other texts may repeat them. So its results, errors,
    unique keys and progress are skipped, too.
    """
    job, run, schedule, audit = jobs.Job, jobs.Run, jobs.Schedule, jobs.Audit
    hidden = jobs.tasks.sensitive()
    in_json = json.dumps(words, ensure_ascii=False)[1:-1]
    of_jobs: list[tuple[str, Any, str]] = [
        ("arguments", sa.cast(without(job.args, job.task, hidden), sa.Text), in_json),
        ("headers", sa.cast(job.headers, sa.Text), in_json),
        ("unique key", job.unique_key, words),
        ("progress", job.progress_message, words),
    ]
    is_open = job.task.not_in([*hidden])
    for where, text, sought in of_jobs:
        wanted = sa.select(job.id, job.task, readable(job.created_at), text).where(
            text.icontains(sought, autoescape=True)
        )
        if where in ("unique key", "progress"):  # these may repeat a sensitive argument
            wanted = wanted.where(is_open)
        for row in ask(session, jobs, wanted.order_by(job.id.desc()).limit(most)):
            yield Place(where, row[0], row[1], row[2], _around(row[3], sought))
    of_runs: list[tuple[str, Any, str]] = [
        ("result", sa.cast(run.result, sa.Text), in_json),
        ("error", run.error, words),
    ]
    for where, text, sought in of_runs:
        wanted = sa.select(job.id, job.task, run.finished_at, text).join(job, job.id == run.job_id)
        wanted = wanted.where(is_open, text.icontains(sought, autoescape=True))
        for row in ask(session, jobs, wanted.order_by(run.id.desc()).limit(most)):
            yield Place(where, row[0], row[1], row[2], _around(row[3], sought))
    args = sa.cast(without(schedule.args, schedule.task, hidden), sa.Text)
    rows = (
        sa.select(schedule.name, schedule.next_run_at, args).where(args.icontains(in_json, autoescape=True)).limit(most)
    )
    for name, moment, text in ask(session, jobs, rows):
        yield Place("schedule", None, name, moment, _around(text, in_json))
    said = audit.subject + " " + sa.cast(audit.details, sa.Text)
    lines = sa.select(audit.subject, audit.at, said).where(said.icontains(in_json, autoescape=True))
    for subject, moment, text in ask(session, jobs, lines.order_by(audit.id.desc()).limit(most)):
        yield Place("audit", None, subject, moment, _around(text, in_json))


def _around(text: str, sought: str) -> str:
    place = max(0, text.lower().find(sought.lower()))
    begin, end = max(0, place - _AROUND), place + len(sought) + _AROUND
    return f"{'…' if begin else ''}{text[begin:end]}{'…' if end < len(text) else ''}"
