"""Names of tasks and queues, as suggestions in form fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.monitoring.queues import waiting_queues

_MOST = 500
"""The maximum number of names of each kind on a page."""


@dataclass(frozen=True, slots=True)
class Names:
    """Names of tasks and queues, sorted and perhaps incomplete."""

    tasks: list[str]
    queues: list[str]


def read_names(session: Session, jobs: Jobs[Any]) -> Names:
    """Return the names that the application declares, and those of queues with waiting jobs or a row of their own."""
    jobs.tasks.load()
    declared = [task._declaration.defaults["queue"] for task in jobs.tasks.values()]
    stored = ask(session, jobs, sa.select(jobs.Queue.name).limit(_MOST)).scalars()
    queues = {"default", *declared, *stored, *waiting_queues(session, jobs)}
    return Names(sorted(jobs.tasks)[:_MOST], sorted(queues)[:_MOST])
