"""The pruning of graphs of dependent jobs, and of empty batches. A graph is kept until the last of its jobs may go."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from copy import copy
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import ENDED, LIVE_WORDS
from sqla_jobs.queries.expressions import Tables
from sqla_jobs.queries.pieces import read
from sqla_jobs.queries.sql_text import Pieces, bound, filled
from sqla_jobs.queries.values import numbers
from sqla_jobs.rules.retention import Rule
from sqla_jobs.rules.value_checks import CENTURY

_FEW, _MANY = 100, 10_000
"""The number of jobs of a graph that one statement reads at first, and of all graphs in one statement.

Few graphs have more than `_FEW` jobs. Of a larger graph, the next statement reads ten times as many.
"""


def is_alone(models: Models[Any]) -> sa.ColumnElement[bool]:
    """Return the condition that a job is in no batch, and was not enqueued after others, nor others after it."""
    return sa.literal_column(f"({filled('$is_alone', Tables(models), _PIECES)})", sa.Boolean)


def is_past_own(models: Models[Any]) -> sa.ColumnElement[bool]:
    """Return the condition that a job has ended, and was kept for as long as its own retention says."""
    return sa.literal_column(filled("$is_past_own($jobs)", Tables(models), _PIECES), sa.Boolean)


def connected(models: Models[Any]) -> sa.TextClause:
    """Return a query for the jobs and batches that edges connect with the job `:job_id`, and at most `:most` rows."""
    text = "$connected SELECT job_id, batch_id FROM connected LIMIT :most"
    return bound(text, Tables(models), {**_PIECES, "start": "CAST(:job_id AS bigint)"})


class Graphs:
    """The graphs of dependent jobs, for one look at old jobs.

    Jobs are in one graph if one was enqueued after the other, or after its batch. A graph may be pruned once each of
    its jobs has been kept for as long as one of the rules says: until then, a retry may need any of them.
    """

    def __init__(self, models: Models[Any], rules: Iterable[Rule]) -> None:
        tables = Tables(models)
        self._on = {"mapper": models.Job}
        self._which_are_alone = bound(_WHICH_ARE_ALONE, tables, _PIECES)
        self._graphs = bound(_GRAPHS, tables, {**_PIECES, "start": "s.id"})
        self._may_be_deleted = bound(_MAY_BE_DELETED, tables, _PIECES)
        self._rules = json.dumps([one._asdict() for one in rules])
        self._known: dict[int, bool] = {}
        """The jobs that have been looked at, and whether their graph may be pruned."""

    @property
    def may_be_deleted(self) -> sa.TextClause:
        """The condition that a job is old enough, and that each job that depends on it directly is old enough, too.

        Use it in the statement that deletes the jobs of the graphs found by `whole`. Somebody may have retried one of
        them since.
        """
        return self._may_be_deleted.bindparams(rules=self._rules)

    def whole(self, session: Session, ids: Sequence[int]) -> list[int]:
        """Return those of the jobs that may be pruned, each with all jobs of its graph.

        The jobs of a graph are returned once in the life of this object.
        """
        alone = session.scalars(self._which_are_alone, {"ids": numbers(ids)}, bind_arguments=self._on).all()
        found, left, most = [*alone], sorted({*ids}.difference(alone)), _FEW
        while left := [one for one in left if one not in self._known]:
            some = left[: max(1, _MANY // most)]
            values = {"ids": numbers(some), "most": most, "rules": self._rules}
            is_news = is_cut = False
            for graph, are_old in session.execute(self._graphs, values, bind_arguments=self._on):
                is_cut |= len(graph) == most
                if are_old and len(graph) == most:
                    continue
                is_news = True
                if are_old and graph[0] not in self._known:
                    found += graph
                self._known.update(dict.fromkeys(graph, are_old))
            most = _FEW if not is_cut else min(10 * most, _MANY) if is_news else 10 * most
        return found

    def still_whole(self, session: Session, ids: Sequence[int], locked: Sequence[int]) -> list[int]:
        """Return those of the locked jobs whose graphs may still be pruned, and contain no other job of `ids`.

        The others are locked by somebody who may be retrying them, and then needs their graphs. Call this in a
        statement after the lock, which sees what was committed before it.
        """
        again = copy(self)
        again._known = {}
        mine = {*locked}
        again.whole(session, [one for one in ids if one not in mine])  # the next call does not return these graphs
        return [one for one in again.whole(session, locked) if one in mine]


def find_empty_batches(session: Session, models: Models[Any], *, older_than: float, limit: int) -> list[int]:
    """Return batches made over `older_than` seconds ago that have no jobs, and that no job was enqueued after."""
    found = bound(_EMPTY, Tables(models), _PIECES)
    values = {"older_than": older_than, "limit": limit}
    return [*session.scalars(found, values, bind_arguments={"mapper": models.Job})]


def remove_batches(session: Session, models: Models[Any], ids: list[int]) -> int:
    """Delete those batches that are still empty and that nobody is joining.

    Return the number of deleted batches. Lock the batches first, in the session's transaction. Only a later
    statement sees the jobs that joined before the lock.
    """
    tables, on = Tables(models), {"mapper": models.Job}
    locked = session.scalars(bound(_HOLD, tables), {"ids": numbers(ids)}, bind_arguments=on).all()
    gone = session.scalars(bound(_REMOVE, tables, _PIECES), {"ids": numbers(locked)}, bind_arguments=on)
    return len(gone.all())


# OFFSET 0 keeps the planner from joining whole tables: it cannot know that few jobs are connected.
# A failed job that keeps its ordered key waits for somebody to retry it, and its graph with it.
def _is_old(job: str) -> str:
    return f"""((EXISTS (
      SELECT FROM jsonb_to_recordset(CAST(:rules AS jsonb))
        r (state text, kept float8, "only" jsonb, others jsonb, for_all boolean)
      WHERE r.state = {job}.state AND {job}.finished_at < statement_timestamp() - r.kept * INTERVAL '1 second'
        AND (r."only" = '[]' OR jsonb_exists(r."only", {job}.task)) AND NOT jsonb_exists(r.others, {job}.task)
        AND (r.for_all OR {job}.retention IS NULL)
      OFFSET 0) OR $is_past_own({job}))
      AND NOT ({job}.state = 'failed' AND {job}.ordered_by IS NOT NULL AND $holds({job}.ordered_by)))"""


def _is_past_own(job: str) -> str:
    """Return the condition that the job was kept for its own retention. Any number that somebody stored is allowed."""
    own = f"greatest(0, least({job}.retention, {CENTURY:.0f}))"
    has_ended = f"{job}.state = ANY ('{{{','.join(ENDED)}}}')"
    since = f"{job}.finished_at < statement_timestamp() - {own} * INTERVAL '1 second'"
    return f"({has_ended} AND {job}.retention IS NOT NULL AND coalesce({since}, false))"


def _needed_by_young(edge: str) -> str:
    return f"""EXISTS (
      SELECT FROM $edges e WHERE {edge}
        AND EXISTS (SELECT FROM $jobs k WHERE k.id = e.job_id AND NOT $is_old(k) OFFSET 0)
      OFFSET 0)"""


_PIECES: Pieces = MappingProxyType(
    {
        "is_old": _is_old,
        "is_past_own": _is_past_own,
        "needed_by_young": _needed_by_young,
        "connected": read("connected"),
        "is_alone": """
$jobs.batch_id IS NULL AND $jobs.if_failed IS NULL
AND NOT EXISTS (SELECT FROM $edges e WHERE e.needs_id = $jobs.id OFFSET 0)""",
        "is_empty": """
    NOT EXISTS (SELECT FROM $jobs j WHERE j.batch_id = b.id)
    AND NOT EXISTS (SELECT FROM $edges e WHERE e.batch_id = b.id)""",
    }
)
_WHICH_ARE_ALONE = "SELECT $jobs.id FROM $jobs WHERE $jobs.id = ANY (CAST(:ids AS bigint[])) AND $is_alone"
_GRAPHS = """
SELECT g.ids, g.are_old FROM unnest(CAST(:ids AS bigint[])) s (id) CROSS JOIN LATERAL (
  $connected
  SELECT array_agg(c.job_id) AS ids,
    bool_and((SELECT $is_old(k) FROM $jobs k WHERE k.id = c.job_id)) AS are_old
  FROM (SELECT job_id FROM connected WHERE job_id IS NOT NULL LIMIT :most) c) g
"""
_MAY_BE_DELETED = f"""
$is_old($jobs)
AND NOT $needed_by_young(e.needs_id = $jobs.id)
AND ($jobs.batch_id IS NULL
  OR NOT $needed_by_young(e.batch_id = $jobs.batch_id)
  AND NOT EXISTS (SELECT FROM $jobs m WHERE m.batch_id = $jobs.batch_id AND m.state IN {LIVE_WORDS} OFFSET 0))
"""

_EMPTY = """
SELECT b.id FROM $batches b
WHERE b.created_at < statement_timestamp() - :older_than * INTERVAL '1 second' AND $is_empty
ORDER BY b.id LIMIT :limit
"""
_HOLD = "SELECT b.id FROM $batches b WHERE b.id = ANY (CAST(:ids AS bigint[])) FOR UPDATE SKIP LOCKED"
_REMOVE = "DELETE FROM $batches b WHERE b.id = ANY (CAST(:ids AS bigint[])) AND $is_empty RETURNING b.id"
