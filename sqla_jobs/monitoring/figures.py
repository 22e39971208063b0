"""The figures of a database, such as its number of failed jobs. Reading them costs the same for any number of jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import ask, brief
from sqla_jobs.monitoring.limits import read_limits
from sqla_jobs.monitoring.processes import ProcessStatus
from sqla_jobs.monitoring.queues import count_first, read_work
from sqla_jobs.runtime.metrics import Figures

DEEP = 100_000
"""The maximum number of queued jobs counted in one queue."""
_NEXT = 20_000
"""The maximum number of queued jobs counted by task, over all queues."""
_TIMEOUT = 3.0
"""The timeout of each statement, in seconds."""


def read_figures(session: Session, jobs: Jobs[Any]) -> Figures:
    """Return all figures. Each queue's queued jobs are counted up to `DEEP`, everything else up to 10,000.

    Limits on single keys are omitted, since an application may have one for each of its customers.
    """
    limit: Any = jobs.Limit
    queues, processes = read_work(session, jobs, most=DEEP)
    running = _running(session, jobs)
    counted = Counter[tuple[str, str]]()
    for (task, _), number in running.items():
        counted["running", task] += number
    for state, task, number in _by_state(session, jobs, [one.name for one in queues]):
        counted[state, task] = number
    return Figures(
        queues,
        counted,
        {*running},
        read_limits(session, jobs, sa.or_(limit.gate.startswith("@"), sa.not_(limit.gate.like("%=_%")))),
        Counter(one.kind for one in processes if one.alive),
        Counter(one.kind for one in processes if not one.alive),
        _oldest_heartbeats(processes),
    )


def read_briefly(jobs: Jobs[Any]) -> Figures:
    """Return all figures. Raises the database's error if a statement takes longer than a few seconds."""
    with brief(jobs._replica(), jobs, _TIMEOUT) as session:
        return read_figures(session, jobs)


def _oldest_heartbeats(processes: Sequence[ProcessStatus]) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in processes:
        if one.alive:
            found[one.kind] = max(found.get(one.kind, 0.0), one.beat_age)
    return found


def _by_state(session: Session, jobs: Jobs[Any], queues: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """Yield states, tasks and numbers of jobs that do not run."""
    job: Any = jobs.Job
    for state in ("scheduled", "blocked", "failed"):
        for task, number in count_first(session, jobs, state, job.task).items():
            yield state, task, number
    if queues:
        each = sa.values(sa.column("name", sa.Text), name="each").data([(name,) for name in queues])
        following = (
            sa.select(job.task)
            .where(job.state == "queued", job.queue == each.c.name)
            .order_by(job.gates.is_(None), job.priority, job.position)
            .limit(max(1, _NEXT // len(queues)))
            .correlate(each)
            .lateral("following")
        )
        of_each = sa.select(following.c.task, sa.func.count()).select_from(each.join(following, sa.true()))
        for task, number in ask(session, jobs, of_each.group_by(following.c.task)):
            yield "queued", task, number


def _running(session: Session, jobs: Jobs[Any]) -> dict[tuple[str, str], int]:
    """Return the number of running jobs by task and queue."""
    job: Any = jobs.Job
    some = sa.select(job.task, job.queue).where(job.state == "running").subquery()
    by_origin = sa.select(some.c.task, some.c.queue, sa.func.count()).group_by(some.c.task, some.c.queue)
    return {(task, queue): number for task, queue, number in ask(session, jobs, by_origin)}
