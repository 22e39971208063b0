"""Edges between jobs: statements that insert them, and that find dependent jobs."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from sqlalchemy.orm import Session

from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import LIVE_WORDS
from sqla_jobs.queries.expressions import Tables
from sqla_jobs.queries.pieces import read
from sqla_jobs.queries.sql_text import Pieces
from sqla_jobs.queries.statement import SqlConnection, Statement
from sqla_jobs.queries.values import numbers, texts
from sqla_jobs.rules.redaction import ERASED_ARGS

AFTER_ALL = 2147483647
"""The `waits_at` of a job that waits only for batches, and the place of the edge for deleted jobs of its batches."""


class AddEdges(Statement):
    """Insert the edges of new jobs: one for each job or batch that they are enqueued after."""

    text: ClassVar[str] = """
        INSERT INTO $edges (job_id, place, needs_id, batch_id)
        SELECT j.id, n.place, n.needs_id, n.batch_id
        FROM $jobs j CROSS JOIN unnest(CAST(:needs AS bigint[]), CAST(:batches AS bigint[]))
          WITH ORDINALITY n (needs_id, batch_id, place)
        WHERE j.id = ANY (CAST(:ids AS bigint[])) AND j.if_failed IS NOT NULL
          AND NOT EXISTS (SELECT FROM $edges e WHERE e.job_id = j.id)"""

    def __call__(
        self, connection: SqlConnection, ids: Sequence[int], needs: Sequence[int | None], batches: Sequence[int | None]
    ) -> None:
        """Insert the edges. If a job in `ids` is not new, since its unique key was taken, it keeps its old edges."""
        values = {"ids": numbers(ids), "needs": with_gaps(needs), "batches": with_gaps(batches)}
        self._run(connection, values)


class HangsOn(Statement):
    """Return whether a job enqueued after some jobs and batches waits for one batch, directly or through other jobs.

    Jobs that other transactions have not committed are not seen: `sqla-jobs doctor` finds the circles that these make.
    """

    text: ClassVar[str] = """
        WITH RECURSIVE above (job_id, batch_id) AS (
            SELECT * FROM unnest(CAST(:ids AS bigint[]), CAST(:batches AS bigint[]))
          UNION
            SELECT n.job_id, n.batch_id FROM above a CROSS JOIN LATERAL (
              SELECT e.needs_id AS job_id, e.batch_id FROM $edges e WHERE e.job_id = a.job_id
              UNION ALL
              SELECT m.id, NULL FROM $jobs m WHERE m.batch_id = a.batch_id
                AND EXISTS (SELECT FROM $edges e WHERE e.job_id = m.id)) n
        )
        SELECT EXISTS (SELECT FROM above WHERE batch_id = :batch)"""

    def __call__(self, connection: SqlConnection, ids: Sequence[int], batch_ids: Sequence[int], batch_id: int) -> bool:
        values = {"ids": numbers(ids), "batches": numbers(batch_ids), "batch": batch_id}
        ((hangs,),) = self._rows(connection, values)
        return bool(hangs)


class LockDependents(Statement):
    """Lock the blocked and cancelled jobs that depend on the given jobs, directly or through other jobs.

    Also keep all their batches from being closed by workers: a job that is not committed yet may wait for one.
    """

    text: ClassVar[str] = read("lock_dependents")
    pieces: Pieces = MappingProxyType(
        {
            "dependents": """
    SELECT e.job_id FROM $edges e WHERE e.needs_id = g.id
    UNION ALL
    SELECT e.job_id FROM $edges e WHERE e.batch_id = (SELECT m.batch_id FROM $jobs m WHERE m.id = g.id)"""
        }
    )

    def __call__(self, connection: SqlConnection, ids: Collection[int]) -> None:
        self._run(connection, {"ids": numbers(ids)})


class Revived(NamedTuple):
    """The jobs that wait again because jobs have been retried."""

    number: int
    """The number of jobs that wait again."""
    erased: list[int]
    """The jobs that stay cancelled, since their arguments have been erased."""


class Revive(Statement):
    """Block jobs again if they were cancelled because of a job that has been retried. Reopen all their batches.

    Of several jobs with the same unique key, only the newest is blocked again.
    """

    text: ClassVar[str] = read("revive")
    pieces: Pieces = MappingProxyType(
        {
            "has_arguments": "jsonb_typeof(j.args) = 'object' AND j.args <> CAST(:erased AS jsonb)",
            "has_no_rival": f"""
      NOT EXISTS (SELECT FROM $jobs r WHERE r.unique_key = j.unique_key AND r.state IN {LIVE_WORDS})""",
        }
    )

    def __call__(self, connection: SqlConnection, ids: Collection[int]) -> Revived:
        rows = self._rows(connection, {"ids": numbers(ids), "erased": json.dumps(ERASED_ARGS)})
        erased = [job_id for job_id, is_erased in rows if is_erased]
        return Revived(len(rows) - len(erased), erased)


class WaitAgain(Statement):
    """Block retried jobs, which are queued or scheduled, if a job that they were enqueued after is live."""

    text: ClassVar[str] = f"""
        UPDATE $jobs j SET state = 'blocked', waits_for = n.id, waits_at = n.place
        FROM $jobs w CROSS JOIN LATERAL (
          SELECT p.id, e.place FROM $edges e JOIN $jobs p ON p.id = e.needs_id
          WHERE e.job_id = w.id AND p.state IN {LIVE_WORDS}
          UNION ALL
          SELECT m.id, {AFTER_ALL} FROM $edges e JOIN $jobs m ON m.batch_id = e.batch_id
          WHERE e.job_id = w.id AND e.batch_id IS NOT NULL AND m.state IN {LIVE_WORDS}
          LIMIT 1) n
        WHERE w.id = ANY (CAST(:ids AS bigint[])) AND w.state IN ('queued', 'scheduled') AND j.id = w.id
        RETURNING j.id"""

    def __call__(self, connection: SqlConnection, ids: Collection[int]) -> int:
        """Return the number of jobs that wait again."""
        return len(self._rows(connection, {"ids": numbers(ids)}))


class MarkDeleted(Statement):
    """Record that jobs of some batches were deleted.

    For jobs that wait for these batches, and are in one of the states, the deleted jobs count as cancelled.
    """

    # an edge without a job or batch stands for a deleted job; its place is the last one, which is always looked at
    text: ClassVar[str] = f"""
        INSERT INTO $edges (job_id, place)
        SELECT DISTINCT e.job_id, {AFTER_ALL} FROM $edges e JOIN $jobs j ON j.id = e.job_id
        WHERE e.batch_id = ANY (CAST(:batches AS bigint[])) AND j.state = ANY (CAST(:states AS text[]))
        ON CONFLICT DO NOTHING"""

    def __call__(
        self, connection: SqlConnection, batch_ids: Collection[int], states: Sequence[str] = ("blocked", "cancelled")
    ) -> None:
        self._run(connection, {"batches": numbers(batch_ids), "states": texts([*states])})


def revive(session: Session, models: Models[Any], ids: Sequence[int], ended: Sequence[int]) -> Revived:
    """Block again the jobs that were cancelled because of the jobs `ids`, which have been retried.

    Reopen the batches of all these jobs. Of the retried jobs, those in `ended` had ended before: they wait again for
    the live jobs that they were enqueued after, such as those that have been retried with them.

    First lock all jobs that depend on the retried jobs. Otherwise a worker that has seen the failure but not the retry
    could cancel a dependent job afterwards.
    """
    tables = Tables(models)
    LockDependents(tables)(session, ids)
    number, erased = Revive(tables)(session, ids)
    return Revived(number + WaitAgain(tables)(session, ended) if ended else number, erased)


def with_gaps(given: Sequence[int | None]) -> str:
    """Return an array literal of the numbers, with NULL for None."""
    return numbers("NULL" if value is None else value for value in given)
