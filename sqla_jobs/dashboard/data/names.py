"""Names of tasks and queues, as suggestions in form fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.monitoring.queues import waiting_queues

_NEWEST = 1_000
"""The maximum number of jobs whose names are read."""
_MOST = 500
"""The maximum number of names of each kind on a page."""


@dataclass(frozen=True, slots=True)
class Names:
    """Names of tasks and queues, sorted and perhaps incomplete."""

    tasks: list[str]
    queues: list[str]


def read_names(session: Session, jobs: Jobs[Any]) -> Names:
    """Return the names that the application declares, that processes serve, and that waiting or new jobs have."""
    job, process, schedule = jobs.Job, jobs.Process, jobs.Schedule
    jobs.tasks.load()
    newest = sa.select(job.task, job.queue).order_by(job.id.desc()).limit(_NEWEST).subquery("newest")
    seen = ask(session, jobs, sa.select(newest.c.task, newest.c.queue).distinct()).all()
    planned = ask(session, jobs, sa.select(schedule.task, schedule.queue).distinct().limit(_MOST)).all()
    served = ask(session, jobs, sa.select(sa.func.jsonb_object_keys(process.queues)).distinct()).scalars()
    stored = ask(session, jobs, sa.select(jobs.Queue.name).limit(_MOST)).scalars()
    declared = [task._declaration.defaults["queue"] for task in jobs.tasks.values()]
    tasks = {*jobs.tasks, *(row[0] for row in (*seen, *planned))}
    queues = {"default", *declared, *served, *stored, *waiting_queues(session, jobs)}
    queues.update(row[1] for row in (*seen, *planned))
    return Names(sorted(tasks)[:_MOST], sorted(queues)[:_MOST])
