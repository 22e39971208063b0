"""The failures on the overview page: failed, retried and lost runs, by task and error."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Text, cast, func, select, true
from sqlalchemy.orm import Session

from sqla_jobs.dashboard.shown import READ
from sqla_jobs.jobs import Jobs
from sqla_jobs.rules.wording import Count

BAD = ("failed", "retried", "lost")
_LOOKED_AT = 5_000
"""The maximum number of failures that are grouped, the newest first."""
_KINDS = 5
"""The maximum number of errors shown for one task, the most common first."""
_SHOWN = 50


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """The failed runs of one task with one type of error, and the newest of them.

    `share` is the task's share of all examined failures, from 0 to 1.
    """

    task: str
    error_type: str
    runs: Count
    jobs: Count
    share: float
    job_id: int
    error: str
    args_text: str
    finished_at: datetime


def failure_groups(session: Session, jobs: Jobs[Any], start: datetime) -> list[FailureGroup]:
    """Return the failures since `start`: the most common of each task first, then the others.

    Only the newest failures are examined. If there are more, the numbers are minimums.
    """
    rows = session.execute(_groups(jobs, start), bind_arguments={"mapper": jobs.Run}).all()
    if not rows:
        return []
    is_least = rows[0].looked_at == _LOOKED_AT
    return [
        FailureGroup(
            row.task,
            row.error_type or "",
            Count(row.runs, is_least=is_least),
            Count(row.jobs, is_least=is_least),
            float(row.of_task) / float(row.total),
            row.job_id,
            row.error or "",
            row.args_text,
            row.finished_at,
        )
        for row in rows
    ]


def _groups(jobs: Jobs[Any], start: datetime) -> Any:
    job: Any = jobs.Job
    run: Any = jobs.Run
    bad = (
        select(run.id, run.job_id, run.error_type)
        .where(run.outcome.in_(BAD), run.finished_at >= start)
        .order_by(run.finished_at.desc())
        .limit(_LOOKED_AT)
        .cte("bad")
    )
    # LIMIT makes the planner look up each row by primary key
    of_job = select(job.task).where(job.id == bad.c.job_id).limit(1).correlate(bad).lateral("of_job")
    task, count, newest = of_job.c.task, func.count(), func.max(bad.c.id)
    grouped = (
        select(
            task,
            bad.c.error_type,
            count.label("runs"),
            func.count(bad.c.job_id.distinct()).label("jobs"),
            newest.label("newest"),
            func.sum(count).over(partition_by=task).label("of_task"),
            func.sum(count).over().label("total"),
            func.row_number().over(partition_by=task, order_by=(count.desc(), newest.desc())).label("place"),
        )
        .select_from(bad.join(of_job, true()))
        .group_by(task, bad.c.error_type)
        .subquery("grouped")
    )
    return (
        select(
            *grouped.c,
            func.left(run.error, READ).label("error"),
            run.finished_at,
            run.job_id,
            cast(job.args, Text).label("args_text"),
            select(func.count()).select_from(bad).scalar_subquery().label("looked_at"),
        )
        .join_from(grouped, run, run.id == grouped.c.newest)
        .join(job, job.id == run.job_id)
        .where(grouped.c.place <= _KINDS)
        .order_by(grouped.c.place > 1, grouped.c.runs.desc(), grouped.c.newest.desc())
        .limit(_SHOWN)
    )
