"""Attempts whose events are undelivered: failed and lost attempts, and those whose process was killed."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Any, NamedTuple

import sqlalchemy as sa

from sqla_jobs.queries.expressions import array_of, locked, seconds
from sqla_jobs.queries.statement import SqlConnection, Statement

_MANY = 100
"""The number of events that one process delivers at a time."""
_LATE = 3600.0
"""Seconds after which an undelivered event is dropped: a newly deployed handler must not get all the old events."""
_AGAIN = 60.0
"""Seconds after which another process delivers the events, unless the first process has marked them as delivered."""


class Undelivered(NamedTuple):
    """A run, and the columns of its job that its event needs."""

    run_id: int
    job_id: int
    attempt: int
    process_id: uuid.UUID | None
    outcome: str
    error_type: str | None
    error: str | None
    seconds: float
    task: str
    queue: str
    max_attempts: int
    headers: str | None
    process_killed: bool


class TakeUndelivered(Statement):
    """Take some due undelivered attempts of the given tasks, with any of the given outcomes.

    No other process gets these attempts for a minute. Events that have been due for an hour are dropped.
    """

    def __call__(
        self, connection: SqlConnection, outcomes: Collection[str], tasks: Collection[str]
    ) -> list[Undelivered]:
        return [Undelivered(*row) for row in self._rows(connection, {"outcomes": [*outcomes], "tasks": [*tasks]})]

    def sql(self) -> Any:
        jobs, runs = self.tables.jobs, self.tables.runs
        now = sa.func.statement_timestamp()
        due = (
            sa.select(runs.c.id)
            .join(jobs, jobs.c.id == runs.c.job_id)
            .where(
                jobs.c.task == sa.any_(sa.bindparam("tasks", type_=sa.ARRAY(sa.Text))),
                runs.c.untold_at <= now,
                runs.c.untold_at > now - seconds(_LATE),
                runs.c.outcome == sa.any_(sa.bindparam("outcomes", type_=sa.ARRAY(sa.Text))),
            )
            .order_by(runs.c.untold_at)
            .limit(_MANY)
        )
        mine = locked(due, "mine", of=runs)
        # if the attempt's own process was killed, the run has no traceback
        killed = sa.and_(runs.c.outcome != "lost", runs.c.error_type == "TimeoutError", runs.c.traceback.is_(None))
        took = sa.cast(sa.func.extract("epoch", runs.c.finished_at - runs.c.started_at), sa.Double)
        return (
            sa.update(runs)
            .where(runs.c.id == sa.any_(array_of(sa.select(mine.c.id))), jobs.c.id == runs.c.job_id)
            .values(untold_at=now + seconds(_AGAIN))
            .returning(
                *(runs.c.id, runs.c.job_id, runs.c.attempt, runs.c.process_id),
                *(sa.cast(runs.c.outcome, sa.Text), runs.c.error_type, runs.c.error, took),
                *(jobs.c.task, jobs.c.queue, jobs.c.max_attempts, sa.cast(jobs.c.headers, sa.Text)),
                sa.func.coalesce(killed, False),
            )
        )


class MarkDelivered(Statement):
    """Mark the events of these attempts as delivered."""

    def __call__(self, connection: SqlConnection, run_ids: Collection[int]) -> None:
        self._run(connection, {"run_ids": [*run_ids]})

    def sql(self) -> Any:
        runs = self.tables.runs
        named = runs.c.id == sa.any_(sa.bindparam("run_ids", type_=sa.ARRAY(sa.BigInteger)))
        return sa.update(runs).where(named, runs.c.untold_at.is_not(None)).values(untold_at=sa.null())
