"""What waits: for these tasks, and for none that is known here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ARRAY, Text, and_, any_, exists, func, literal, select

from sqla_jobs.queries.expressions import Tables, among, in_state


def is_due(tables: Tables, queues: Sequence[str], tasks: Sequence[str]) -> list[Any]:
    """Looks for a job that a claim, or a promotion, would find now; rows locked by others do not count."""
    jobs = tables.jobs
    here = and_(
        jobs.c.queue == any_(literal(list(queues), ARRAY(Text))),
        jobs.c.task == any_(literal(list(tasks), ARRAY(Text))),
        ~exists().where(tables.queues.c.name == jobs.c.queue, tables.queues.c.paused_at.is_not(None)),
        among(jobs),
    )
    found = select(literal(1)).where(here).limit(1).with_for_update(skip_locked=True, key_share=True, of=jobs)
    queued = found.where(in_state(jobs, "queued"))
    due = found.where(in_state(jobs, "scheduled"), jobs.c.run_at <= func.statement_timestamp())
    return [queued, due]


def unknown_to(tables: Tables, queues: Sequence[str], tasks: Sequence[str]) -> Any:
    """The tasks, and how many of the first 10,000 jobs that wait in these queues, but for those of `tasks`."""
    jobs = tables.jobs
    waiting = (
        select(jobs.c.task)
        .where(
            in_state(jobs, "queued"),
            jobs.c.queue == any_(literal(list(queues), ARRAY(Text))),
            ~(jobs.c.task == any_(literal(list(tasks), ARRAY(Text)))),
        )
        .limit(10_000)
        .subquery()
    )
    return select(waiting.c.task, func.count()).group_by(waiting.c.task)
