"""Failures by task and error, from the newest failed runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.queries.expressions import last_run_of
from sqla_jobs.rules.wording import Count

LOOKED_AT = 10_000
"""The maximum number of failed runs that are read, over all tasks."""
BAD: sa.TextClause = sa.text("outcome IN ('failed', 'retried', 'lost')")
"""The condition of the index of failed runs, in its words."""
_SEEN = 4
"""Among this many times as many runs that failed, were retried or lost, those of the wanted outcomes are looked for."""


@dataclass(frozen=True, slots=True)
class Failures:
    """The jobs of one task that failed with one type of error. `last_job_id` is the newest of these jobs.

    `share` is the task's share of all counted failures, from 0 to 1.
    """

    task: str
    error_type: str
    count: Count
    share: float
    last_job_id: int
    last_error: str


@dataclass(frozen=True, slots=True)
class Retrying(Failures):
    """One task's jobs that failed with one type of error and wait for a retry. The first retry is due at `next_at`."""

    next_at: datetime


def read_failures(
    session: Session, jobs: Jobs[Any], *, within: timedelta = timedelta(days=1), most: int = LOOKED_AT
) -> list[Failures]:
    """Return the failures that are at most `within` old, the most frequent first. The newest `most` runs are read."""
    job, run = jobs.Job, jobs.Run
    since = sa.func.now() - within
    found = _groups(session, jobs, ["failed", "lost"], job.state == "failed", most, run.finished_at > since)
    return [Failures(*values) for *values, _ in found]


def read_retrying(session: Session, jobs: Jobs[Any], *, most: int = LOOKED_AT) -> list[Retrying]:
    """Return the failures of jobs that wait for a retry, the most frequent first. The newest `most` runs are read."""
    job = jobs.Job
    waits = job.state.in_(["scheduled", "queued"]) & job.started_at.is_not(None)
    return [Retrying(*values) for values in _groups(session, jobs, ["retried", "lost"], waits, most)]


def _groups(
    session: Session,
    jobs: Jobs[Any],
    outcomes: Sequence[str],
    condition: sa.ColumnElement[bool],
    most: int,
    *narrower: sa.ColumnElement[bool],
) -> list[tuple[Any, ...]]:
    """Return the fields of failures, each with its first `run_at`. `condition` is about the job of a run."""
    job, run = jobs.Job, jobs.Run
    seen = sa.select(run.id, run.job_id, run.error_type, run.outcome, run.finished_at).where(BAD, *narrower)
    last = seen.order_by(run.finished_at.desc()).limit(min(_SEEN * most, 2**31 - 1)).subquery("seen")
    newest = sa.select(last.c.id, last.c.job_id, last.c.error_type).where(last.c.outcome.in_(outcomes))
    read = newest.order_by(last.c.finished_at.desc()).limit(most).cte("newest").prefix_with("MATERIALIZED")
    kind, count, newest_id = sa.func.coalesce(read.c.error_type, ""), sa.func.count(), sa.func.max(read.c.id)
    is_least = sa.select(sa.func.count() == most).select_from(read).scalar_subquery()
    grouped = (
        sa.select(job.task, kind, count, newest_id, sa.func.min(job.run_at), is_least)
        .join(job, job.id == read.c.job_id)
        .where(condition, read.c.id == last_run_of(run, job.id))
        .group_by(job.task, kind)
        .order_by(count.desc(), job.task)
    )
    groups = ask(session, jobs, grouped).all()
    examples = _examples(session, jobs, [group[3] for group in groups])
    of_task = Counter[str]()
    for task, _, number, *_ in groups:
        of_task[task] += number
    total = of_task.total()
    return [
        (task, kind, Count(number, is_least=is_least), of_task[task] / total, *examples[run_id], first_at)
        for task, kind, number, run_id, first_at, is_least in groups
    ]


def _examples(session: Session, jobs: Jobs[Any], run_ids: Sequence[int]) -> dict[int, tuple[int, str]]:
    """Return the job and the error of each of these runs, without secrets."""
    job, run = jobs.Job, jobs.Run
    rows = session.execute(
        sa.select(run.id, job.id, job.task, run.error, sa.cast(job.args, sa.Text))
        .join(job, job.id == run.job_id)
        .where(run.id.in_(run_ids))
    )
    return {
        run_id: (job_id, jobs.tasks.secrets(task, args).text(error or "")) for run_id, job_id, task, error, args in rows
    }
