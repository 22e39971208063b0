"""The pruning of graphs of dependent jobs, and of empty batches. A graph is kept until all of it has ended."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ARRAY, BigInteger, TextClause, bindparam, text
from sqlalchemy.orm import Session

from sqla_jobs.calls.values import numbers
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import LIVE_WORDS
from sqla_jobs.queries.edges import DEPENDENTS
from sqla_jobs.queries.expressions import Tables
from sqla_jobs.queries.gates import named, with_arrays


def is_of_ended_graph(models: Models[Any]) -> TextClause:
    """Return the condition that no live job is in the job's batch or depends on the job, even indirectly.

    Use it in a statement about the jobs in the parameter `ids`: the jobs that depend on them are looked up only once.
    """
    condition = named(_IS_OF_ENDED_GRAPH, Tables(models))
    return text(condition).bindparams(bindparam("ids", type_=ARRAY(BigInteger)))


def find_empty_batches(session: Session, models: Models[Any], *, older_than: float, limit: int) -> list[int]:
    """Return batches made over `older_than` seconds ago that have no jobs, and that no job was enqueued after."""
    found = text(named(_EMPTY, Tables(models)))
    values = {"older_than": older_than, "limit": limit}
    return [*session.scalars(found, values, bind_arguments={"mapper": models.Job})]


def remove_batches(session: Session, models: Models[Any], ids: list[int]) -> int:
    """Delete those batches that are still empty and that nobody is joining.

    Return the number of deleted batches. Lock the batches first, in the session's transaction. Only a later
    statement sees the jobs that joined before the lock.
    """
    tables, on = Tables(models), {"mapper": models.Job}
    locked = session.scalars(with_arrays(named(_HOLD, tables)), {"ids": numbers(ids)}, bind_arguments=on).all()
    return len(session.execute(with_arrays(named(_REMOVE, tables)), {"ids": numbers(locked)}, bind_arguments=on).all())


_IS_OF_ENDED_GRAPH = f"""
({{jobs}}.batch_id IS NULL OR NOT EXISTS (
  SELECT FROM {{jobs}} m WHERE m.batch_id = {{jobs}}.batch_id AND m.state IN {LIVE_WORDS}))
AND {{jobs}}.id <> ALL (ARRAY(
  WITH RECURSIVE below (id) AS (
    SELECT id FROM unnest(CAST(:ids AS bigint[])) g (id)
  UNION
    SELECT d.job_id FROM below g CROSS JOIN LATERAL ({DEPENDENTS.format(job_id="g.id")}) d
  ), needed (id) AS (
    SELECT b.id FROM below b
    CROSS JOIN LATERAL (SELECT (SELECT j.state FROM {{jobs}} j WHERE j.id = b.id) AS state OFFSET 0) j
    WHERE j.state IN {LIVE_WORDS}
  UNION
    SELECT b.id FROM needed n
    CROSS JOIN LATERAL (
      SELECT e.needs_id AS id FROM {{edges}} e WHERE e.job_id = n.id
      UNION ALL
      SELECT m.id FROM {{edges}} e JOIN {{jobs}} m ON m.batch_id = e.batch_id
      WHERE e.job_id = n.id AND e.batch_id IS NOT NULL) u
    JOIN below b ON b.id = u.id
  ) SELECT id FROM needed))
"""

_IS_EMPTY = """
    NOT EXISTS (SELECT FROM {jobs} j WHERE j.batch_id = b.id)
    AND NOT EXISTS (SELECT FROM {edges} e WHERE e.batch_id = b.id)"""
_EMPTY = f"""
SELECT b.id FROM {{batches}} b
WHERE b.created_at < statement_timestamp() - :older_than * INTERVAL '1 second' AND {_IS_EMPTY}
ORDER BY b.id LIMIT :limit
"""
_HOLD = "SELECT b.id FROM {batches} b WHERE b.id = ANY (CAST(:ids AS bigint[])) FOR UPDATE SKIP LOCKED"
_REMOVE = f"DELETE FROM {{batches}} b WHERE b.id = ANY (CAST(:ids AS bigint[])) AND {_IS_EMPTY} RETURNING b.id"
