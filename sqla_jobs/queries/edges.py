"""Edges between jobs: how they are inserted, and which jobs depend on others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy.orm import Session

from sqla_jobs.calls.values import numbers
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import LIVE_WORDS
from sqla_jobs.queries.expressions import Tables
from sqla_jobs.queries.gates import filled_in
from sqla_jobs.queries.statement import SqlConnection, Statement

AFTER_ALL = 2147483647
"""The `waits_at` of a job that waits only for batches, and the place of its edge to deleted jobs of these batches."""


class AddEdges(Statement):
    """Insert the edges of new jobs: one for each job or batch that they are enqueued after."""

    def __call__(
        self, connection: SqlConnection, ids: Sequence[int], needs: Sequence[int | None], batches: Sequence[int | None]
    ) -> None:
        """Insert them. Jobs in `ids` whose unique key was taken are not new, and keep the edges that they have."""
        values = {"ids": numbers(ids), "needs": with_gaps(needs), "batches": with_gaps(batches)}
        self._run(connection, values)

    def sql(self) -> Any:
        return filled_in(_ADD, self.tables)


class HangsOn(Statement):
    """Return whether any of some jobs waits, directly or through other jobs, for a batch."""

    def __call__(self, connection: SqlConnection, ids: Sequence[int], batch_ids: Sequence[int], batch_id: int) -> bool:
        values = {"ids": numbers(ids), "batches": numbers(batch_ids), "batch": batch_id}
        ((hangs,),) = self._rows(connection, values)
        return bool(hangs)

    def sql(self) -> Any:
        return filled_in(_HANGS, self.tables)


class LockDependents(Statement):
    """Lock the blocked and cancelled jobs that depend on some jobs, directly or through others."""

    def __call__(self, connection: SqlConnection, ids: Collection[int]) -> None:
        self._run(connection, {"ids": numbers(ids)})

    def sql(self) -> Any:
        return filled_in(_LOCK, self.tables)


class Revive(Statement):
    """Block jobs again that were cancelled because of jobs that are live now, and reopen the batches of all of them.

    Of several jobs with the same unique key, only the newest is blocked again.
    """

    def __call__(self, connection: SqlConnection, ids: Collection[int]) -> int:
        """Return the number of jobs that are blocked again."""
        return len(self._rows(connection, {"ids": numbers(ids)}))

    def sql(self) -> Any:
        return filled_in(_REVIVE, self.tables)


class MarkDeleted(Statement):
    """Record that jobs of some batches were deleted: for the jobs after these batches, they count as cancelled."""

    def __call__(self, connection: SqlConnection, batch_ids: Collection[int]) -> None:
        self._run(connection, {"batches": numbers(batch_ids)})

    def sql(self) -> Any:
        return filled_in(_MARK, self.tables)


def revive(session: Session, models: Models[Any], ids: Sequence[int]) -> int:
    """Block again the jobs that were cancelled because of these jobs, which have been retried. Return their number.

    Their batches are open again. All jobs that depend on the retried ones are locked first. Otherwise a worker that has
    seen the failure but not the retry could cancel one of them afterwards.
    """
    tables = Tables(models)
    LockDependents(tables)(session, ids)
    return Revive(tables)(session, ids)


def with_gaps(given: Sequence[int | None]) -> str:
    """Return an array literal of the numbers, with NULL for None."""
    return numbers("NULL" if value is None else value for value in given)


_ADD = """
INSERT INTO {edges} (job_id, place, needs_id, batch_id)
SELECT j.id, n.place, n.needs_id, n.batch_id
FROM {jobs} j CROSS JOIN unnest(CAST(:needs AS bigint[]), CAST(:batches AS bigint[]))
  WITH ORDINALITY n (needs_id, batch_id, place)
WHERE j.id = ANY (CAST(:ids AS bigint[])) AND j.if_failed IS NOT NULL
  AND NOT EXISTS (SELECT FROM {edges} e WHERE e.job_id = j.id)
"""

# an edge that leads nowhere stands for a deleted job; it is the last one, at a place that is always looked at
_MARK = f"""
INSERT INTO {{edges}} (job_id, place)
SELECT DISTINCT e.job_id, {AFTER_ALL} FROM {{edges}} e JOIN {{jobs}} j ON j.id = e.job_id
WHERE e.batch_id = ANY (CAST(:batches AS bigint[])) AND j.state IN ('blocked', 'cancelled')
ON CONFLICT DO NOTHING
"""

_HANGS = """
WITH RECURSIVE above (job_id, batch_id) AS (
    SELECT * FROM unnest(CAST(:ids AS bigint[]), CAST(:batches AS bigint[]))
  UNION
    SELECT n.job_id, n.batch_id FROM above a CROSS JOIN LATERAL (
      SELECT e.needs_id AS job_id, e.batch_id FROM {edges} e WHERE e.job_id = a.job_id
      UNION ALL
      SELECT m.id, NULL FROM {jobs} m WHERE m.batch_id = a.batch_id
        AND EXISTS (SELECT FROM {edges} e WHERE e.job_id = m.id)) n
)
SELECT EXISTS (SELECT FROM above WHERE batch_id = :batch)
"""

DEPENDENTS = """
    SELECT e.job_id FROM {{edges}} e WHERE e.needs_id = {job_id}
    UNION ALL
    SELECT e.job_id FROM {{edges}} e WHERE e.batch_id = (
      SELECT m.batch_id FROM {{jobs}} m WHERE m.id = {job_id})"""
_LOCK = f"""
WITH RECURSIVE below (id) AS (
    SELECT d.job_id FROM unnest(CAST(:ids AS bigint[])) g (id)
    CROSS JOIN LATERAL ({DEPENDENTS.format(job_id="g.id")}) d
  UNION
    SELECT d.job_id FROM below g CROSS JOIN LATERAL ({DEPENDENTS.format(job_id="g.id")}) d
)
SELECT j.id FROM {{jobs}} j
WHERE j.id = ANY (ARRAY(SELECT id FROM below)) AND j.state IN ('blocked', 'cancelled')
ORDER BY j.id FOR NO KEY UPDATE
"""

_RIVAL = f"SELECT FROM {{jobs}} r WHERE r.unique_key = j.unique_key AND r.state IN {LIVE_WORDS}"
_REVIVE = f"""
WITH RECURSIVE back (id) AS (
    SELECT j.id FROM {{jobs}} p JOIN {{jobs}} j ON j.state = 'cancelled' AND j.waits_for = p.id
    WHERE p.id = ANY (CAST(:ids AS bigint[])) AND p.state NOT IN ('failed', 'cancelled')
      AND NOT EXISTS ({_RIVAL})
  UNION
    SELECT j.id FROM back b JOIN {{jobs}} j ON j.state = 'cancelled' AND j.waits_for = b.id
    WHERE NOT EXISTS ({_RIVAL})
), opened AS (
    UPDATE {{batches}} b SET closed_at = NULL
    WHERE b.closed_at IS NOT NULL AND b.id = ANY (ARRAY(
      SELECT m.batch_id FROM {{jobs}} m
      WHERE m.id = ANY (CAST(:ids AS bigint[]) || ARRAY(SELECT id FROM back)) AND m.batch_id IS NOT NULL))
)
UPDATE {{jobs}} j SET state = 'blocked', finished_at = NULL, cancel_requested_at = NULL
WHERE j.id = ANY (ARRAY(
  SELECT max(j.id) FROM {{jobs}} j WHERE j.id = ANY (ARRAY(SELECT id FROM back))
  GROUP BY coalesce(j.unique_key, CAST(j.id AS text)), j.unique_key IS NULL))
RETURNING j.id
"""
