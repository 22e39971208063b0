"""Attempts whose events are undelivered: failed and lost attempts, and those whose process was killed."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import ClassVar, NamedTuple

from sqla_jobs.queries.statement import SqlConnection, Statement
from sqla_jobs.queries.values import names, numbers

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

    # if the attempt's own process was killed, the run has no traceback
    text: ClassVar[str] = f"""
        WITH mine AS MATERIALIZED (
            SELECT r.id FROM $runs r JOIN $jobs j ON j.id = r.job_id
            WHERE r.untold_at <= statement_timestamp() AND r.outcome = ANY (CAST(:outcomes AS text[]))
              AND r.untold_at > statement_timestamp() - {_LATE} * INTERVAL '1 second'
              AND j.task = ANY (CAST(:tasks AS text[]))
            ORDER BY r.untold_at LIMIT {_MANY} FOR NO KEY UPDATE OF r SKIP LOCKED
        )
        UPDATE $runs r SET untold_at = statement_timestamp() + {_AGAIN} * INTERVAL '1 second' FROM $jobs j
        WHERE r.id = ANY (ARRAY(SELECT id FROM mine)) AND j.id = r.job_id
        RETURNING r.id, r.job_id, r.attempt, r.process_id, CAST(r.outcome AS text), r.error_type, r.error,
          CAST(extract(epoch FROM r.finished_at - r.started_at) AS float8),
          j.task, j.queue, j.max_attempts, CAST(j.headers AS text),
          coalesce(r.outcome <> 'lost' AND r.error_type = 'TimeoutError' AND r.traceback IS NULL, false)"""

    def __call__(
        self, connection: SqlConnection, outcomes: Collection[str], tasks: Collection[str]
    ) -> list[Undelivered]:
        values = {"outcomes": names(tuple(outcomes)), "tasks": names(tuple(tasks))}
        return [Undelivered(*row) for row in self._rows(connection, values)]


class MarkDelivered(Statement):
    """Mark the events of these attempts as delivered."""

    text: ClassVar[str] = """
        UPDATE $runs r SET untold_at = NULL WHERE r.id = ANY (CAST(:run_ids AS bigint[])) AND r.untold_at IS NOT NULL"""

    def __call__(self, connection: SqlConnection, run_ids: Collection[int]) -> None:
        self._run(connection, {"run_ids": numbers(run_ids)})
