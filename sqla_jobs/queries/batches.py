"""The number of a batch's jobs in each state."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, NamedTuple

from sqla_jobs.queries.statement import SqlConnection, Statement
from sqla_jobs.queries.values import numbers


class Counted(NamedTuple):
    """A batch that exists, with the number of its jobs in each state."""

    batch_id: int
    name: str
    age: float
    """Seconds since the batch was made."""
    states: dict[str, int]
    """The number of jobs by state. States that no job is in are left out."""


class CountBatches(Statement):
    """Count the jobs of some batches by state, in one pass over an index. Batches that do not exist are left out."""

    text: ClassVar[str] = """
        SELECT b.id, b.name, CAST(extract(epoch FROM clock_timestamp() - b.created_at) AS float8),
          (SELECT coalesce(jsonb_object_agg(s.state, s.number), '{}') FROM (
             SELECT j.state, count(*) AS number FROM $jobs j WHERE j.batch_id = b.id GROUP BY j.state) s)
        FROM $batches b WHERE b.id = ANY (CAST(:ids AS bigint[]))"""

    def __call__(self, connection: SqlConnection, ids: Collection[int]) -> dict[int, Counted]:
        rows = self._rows(connection, {"ids": numbers(ids)})
        return {row[0]: Counted(*row) for row in rows}
