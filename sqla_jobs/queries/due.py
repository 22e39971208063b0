"""Due jobs: promotion of scheduled jobs, polling, and jobs of tasks that this process does not know."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import sqlalchemy as sa

from sqla_jobs.queries.pieces import read
from sqla_jobs.queries.sql_text import Pieces
from sqla_jobs.queries.statement import RenderedStatement, SqlConnection, Statement
from sqla_jobs.queries.values import ALL, MANY, Among, Promotion, names
from sqla_jobs.rules.outcomes import ROW_MISSING, ROWS_COME_WITHIN

_NEXT_TURN = 0.05
"""Seconds after which to look again for jobs that another process is promoting in order."""


def _next_end(paused: str) -> str:
    """Return the time at which the next pause ends by itself."""
    return f"""(SELECT min(p.paused_until) FROM {paused} p
         WHERE p.paused_until > statement_timestamp() AND p.paused_until < 'infinity')"""


class Promote(RenderedStatement):
    """Queue at most `limit` scheduled jobs that are due, or will be due within `ahead` seconds.

    Also count the workers that serve any of `queues`.
    """

    text: ClassVar[str] = read("promote")
    pieces: Pieces = MappingProxyType(
        {
            "is_due": """j.state = 'scheduled'
      AND j.run_at <= statement_timestamp() + CAST(:ahead AS float8) * INTERVAL '1 second' AND $is_among""",
            # up to the same due time as other jobs, so that neither kind waits for all of the other
            "is_due_in_order": """$is_due AND j.ordered_by IS NOT NULL AND j.run_at < coalesce(
      (SELECT max(run_at) FROM plain HAVING count(*) >= :limit), CAST('infinity' AS timestamptz))""",
            "next_end": _next_end,
            "next_turn": str(_NEXT_TURN),
            "is_more": "",
        }
    )

    def __call__(
        self,
        connection: SqlConnection,
        *,
        ahead: float = 0.0,
        limit: int = MANY,
        queues: Collection[str] = (),
        among: Among = ALL,
    ) -> Promotion:
        return _promotion(self._rows(connection, _parameters(queues, among, ahead, limit)), limit)


def _parameters(queues: Collection[str], among: Among, ahead: float = 0.0, limit: int = MANY) -> dict[str, Any]:
    return {"ahead": ahead, "limit": limit, "queues": names(tuple(queues)), **among.parameters()}


def _promotion(rows: Sequence[Any], limit: int) -> Promotion:
    ((count, due_in, *others),) = rows
    return Promotion(count, 0.0 if count >= limit else due_in, *others)


class IsDue(Statement):
    """Return whether any job without limits can be claimed now, or any job promoted. Ignore locked rows.

    A job that looks for a missing row again counts as due: if the row has been deleted, the job ends in some seconds.
    """

    text: ClassVar[str] = f"""
        WITH queued AS MATERIALIZED (
            SELECT j.id FROM $jobs j
            WHERE j.state = 'queued' AND $is_here AND j.gates IS NULL
              AND j.task <> ALL (ARRAY($limited_tasks)) AND j.queue <> ALL (ARRAY($limited_queues))
            LIMIT 1 FOR NO KEY UPDATE OF j SKIP LOCKED
        ), due AS MATERIALIZED (
            SELECT j.id FROM $jobs j WHERE j.state = 'scheduled' AND $is_here AND j.run_at <= statement_timestamp()
            LIMIT 1 FOR NO KEY UPDATE OF j SKIP LOCKED
        )
        SELECT EXISTS (SELECT FROM queued) OR EXISTS (SELECT FROM due) OR EXISTS (
          SELECT FROM $jobs j WHERE j.state = 'scheduled' AND $is_here AND j.run_at > statement_timestamp()
            AND j.run_at <= statement_timestamp() + {ROWS_COME_WITHIN} * INTERVAL '1 second' AND EXISTS (
              SELECT FROM $runs r WHERE r.job_id = j.id AND r.finished_at >= j.started_at
                AND r.outcome = 'snoozed' AND r.error_type = '{ROW_MISSING}'))"""
    pieces: Pieces = MappingProxyType(
        {
            "is_here": """j.queue = ANY (CAST(:queues AS text[])) AND j.task = ANY (CAST(:tasks AS text[]))
              AND NOT EXISTS (SELECT FROM $queues q WHERE q.name = j.queue AND $is_paused(q))
              AND NOT EXISTS (SELECT FROM $paused_tasks p WHERE p.name = j.task AND $is_paused(p)) AND $is_among"""
        }
    )

    def __call__(
        self, connection: SqlConnection, queues: Sequence[str], tasks: Sequence[str], among: Among = ALL
    ) -> bool:
        values = {"queues": names(tuple(queues)), "tasks": names(tuple(tasks)), **among.parameters()}
        return bool(self._run(connection, values).scalar())


class Poll(RenderedStatement):
    """Promote as `Promote` does, and check whether other jobs are queued. Processes that do not claim jobs use it."""

    text: ClassVar[str] = Promote.text
    pieces: Pieces = MappingProxyType(
        {
            **Promote.pieces,
            "is_more": """, EXISTS (
    SELECT FROM $jobs j WHERE j.state = 'queued' AND j.queue = ANY (CAST(:queues AS text[]))
      AND j.queue <> ALL (ARRAY(SELECT q.name FROM $queues q WHERE $is_paused(q)))
      AND j.task = ANY (ARRAY(
        SELECT t.name FROM unnest(CAST(:tasks AS text[])) t (name)
        WHERE t.name <> ALL (ARRAY(SELECT p.name FROM $paused_tasks p WHERE $is_paused(p)))))
      AND $is_among)""",
        }
    )

    def __call__(
        self, connection: SqlConnection, queues: Sequence[str], tasks: Sequence[str], among: Among = ALL
    ) -> Promotion:
        values = _parameters(queues, among) | {"tasks": names(tuple(tasks))}
        return _promotion(self._rows(connection, values), MANY)


class UnknownTo(Statement):
    """Count, by task, the first 10,000 jobs waiting in `queues` whose task is not in `tasks`."""

    text: ClassVar[str] = """
        SELECT task, count(*) FROM (
          SELECT j.task FROM $jobs j
          WHERE j.state = 'queued' AND j.queue = ANY (CAST(:queues AS text[]))
            AND j.task <> ALL (CAST(:tasks AS text[])) LIMIT 10000) waiting
        GROUP BY task"""

    def __call__(self, connection: SqlConnection, queues: Sequence[str], tasks: Sequence[str]) -> dict[str, int]:
        return dict(self._rows(connection, {"queues": names(tuple(queues)), "tasks": names(tuple(tasks))}))


def waiting_queues(job: Any) -> sa.Select[Any]:
    """Return a query for the names of queues with queued jobs. The query walks an index. `job` is the mapped class."""
    name = sa.select(sa.func.min(job.queue).label("name")).where(job.state == "queued").cte("names", recursive=True)
    following = (
        sa.select(sa.func.min(job.queue)).where(job.state == "queued", job.queue > name.c.name).correlate(name)
    ).scalar_subquery()
    name = name.union_all(sa.select(following).where(name.c.name.is_not(None)))
    return sa.select(name.c.name).where(name.c.name.is_not(None))
