"""Failures by task and error. Tasks are counted separately, so that many failures of one do not hide another's."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Integer, Text, cast, column, func, literal, select, text, true, values
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.queries.expressions import last_run_of
from sqla_jobs.rules.wording import Count

LOOKED_AT = 20_000
"""The maximum number of jobs whose last error is read, over all tasks."""
_TASKS = 1_000
"""The maximum number of tasks that are read."""


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
    session: Session,
    jobs: Jobs[Any],
    *,
    within: timedelta = timedelta(days=1),
    but_for: Collection[str] = (),
    most: int = LOOKED_AT,
) -> list[Failures]:
    """Return the failures that are at most `within` old, the most frequent first. The tasks in `but_for` are left out.

    The last error of at most `most` jobs is read.
    """
    job = jobs.Job
    failed = job.state == text("'failed'")
    recent = [job.finished_at > func.now() - within]
    found = _by_task(session, jobs, failed, recent, job.finished_at.desc(), but_for, most)
    return [one for one, _ in found]


def read_retrying(
    session: Session, jobs: Jobs[Any], *, but_for: Collection[str] = (), most: int = LOOKED_AT
) -> list[Retrying]:
    """Return the failures of jobs that wait for a retry, the most frequent first. Leave out the tasks in `but_for`."""
    job, run = jobs.Job, jobs.Run
    tried = text("'scheduled', 'queued'")
    waiting = job.state.in_(tried) & job.started_at.is_not(None)
    again = run.outcome.in_(["retried", "lost"])
    found = _by_task(session, jobs, waiting, [], job.run_at.asc(), but_for, most, again)
    return [Retrying(**asdict(one), next_at=next_at) for one, next_at in found]


def _by_task(
    session: Session,
    jobs: Jobs[Any],
    condition: ColumnElement[bool],
    narrower: Sequence[ColumnElement[bool]],
    order: Any,
    but_for: Collection[str],
    most: int,
    *of_last_run: ColumnElement[bool],
) -> list[tuple[Failures, datetime]]:
    """Return failures, each with its first `run_at`. `condition` and `order` must match an index on (task, `order`)."""
    job, run = jobs.Job, jobs.Run
    tasks = [task for task in tasks_of(session, jobs, condition) if task not in but_for]
    there = _counts(session, jobs, tasks, [condition, *narrower], order, most)
    looked_at = _fair(there, most)
    if not looked_at:
        return []
    each = values(column("task", Text), column("most", Integer), name="each").data([*looked_at.items()])
    some = (
        select(job.id, job.run_at)
        .where(condition, *narrower, job.task == each.c.task)
        .order_by(order)
        .limit(each.c.most)
        .correlate(each)
        .lateral("some")
    )
    last = last_run_of(run, some.c.id)
    # LIMIT makes the planner look up each row by primary key
    ended = select(run.id, run.error_type).where(run.id == last, *of_last_run).limit(1).correlate(some).lateral("ended")
    kind, count, newest = func.coalesce(ended.c.error_type, ""), func.count(), func.max(ended.c.id)
    grouped = (
        select(each.c.task, kind, count, newest, func.min(some.c.run_at))
        .select_from(each.join(some, true()).join(ended, true()))
        .group_by(each.c.task, kind)
        .order_by(count.desc(), each.c.task)
    )
    groups = ask(session, jobs, grouped).all()
    examples = _examples(session, jobs, [group[3] for group in groups])
    of_task = dict.fromkeys(looked_at, 0)
    for task, _, number, *_ in groups:
        of_task[task] += number if looked_at[task] == there[task] else there[task]
    total = sum(of_task.values())
    return [
        (
            Failures(
                task,
                kind,
                Count(number, is_least=looked_at[task] < there[task]),
                of_task[task] / total,
                *examples[run_id],
            ),
            first_at,
        )
        for task, kind, number, run_id, first_at in groups
    ]


def tasks_of(session: Session, jobs: Jobs[Any], condition: ColumnElement[bool]) -> list[str]:
    """Return the tasks of jobs that meet `condition`, with one index look-up for each task, not for each job."""
    job = jobs.Job
    task = select(func.min(job.task).label("name")).where(condition).cte("tasks", recursive=True)
    following = select(func.min(job.task)).where(condition, job.task > task.c.name).correlate(task).scalar_subquery()
    task = task.union_all(select(following).where(task.c.name.is_not(None)))
    return list(ask(session, jobs, select(task.c.name).where(task.c.name.is_not(None)).limit(_TASKS)).scalars())


def _counts(
    session: Session,
    jobs: Jobs[Any],
    tasks: Sequence[str],
    conditions: Sequence[ColumnElement[bool]],
    order: Any,
    most: int,
) -> dict[str, int]:
    """Count the jobs of each task, up to `most` + 1. `order` makes the server use the index."""
    if not tasks:
        return {}
    job = jobs.Job
    each = values(column("task", Text), name="each").data([(task,) for task in tasks])
    some = select(literal(1).label("one")).where(*conditions, job.task == each.c.task)
    some = some.order_by(order).limit(most + 1).correlate(each)
    number = select(func.count()).select_from(some.subquery("some")).scalar_subquery()
    return {row[0]: row[1] for row in ask(session, jobs, select(each.c.task, number)) if row[1]}


def _fair(there: Mapping[str, int], most: int) -> dict[str, int]:
    """Distribute `most` over the tasks: small tasks get all they need, and the large ones share the rest equally."""
    left, found = most, dict[str, int]()
    for place, (task, number) in enumerate(sorted(there.items(), key=lambda item: item[1])):
        found[task] = min(number, left // (len(there) - place))
        left -= found[task]
    return found


def _examples(session: Session, jobs: Jobs[Any], run_ids: Sequence[int]) -> dict[int, tuple[int, str]]:
    """Return the job and the error of each of these runs, without secrets."""
    job, run = jobs.Job, jobs.Run
    rows = session.execute(
        select(run.id, job.id, job.task, run.error, cast(job.args, Text))
        .join(job, job.id == run.job_id)
        .where(run.id.in_(run_ids))
    )
    return {
        run_id: (job_id, jobs.tasks.secrets(task, args).text(error or "")) for run_id, job_id, task, error, args in rows
    }
