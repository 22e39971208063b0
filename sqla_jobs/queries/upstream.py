"""Reads the workflow around a run's job: the results of the jobs before it, and its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from sqlalchemy.orm import make_transient_to_detached

from sqla_jobs.models.mapping import Models
from sqla_jobs.models.workflow_columns import BatchMixin
from sqla_jobs.queries.expressions import Tables
from sqla_jobs.queries.statement import SqlConnection, Statement
from sqla_jobs.queries.values import texts


class ReadResults(Statement):
    """Read the results of the jobs before a job, in the order of `after`.

    Only succeeded jobs of the given tasks count, each once, even if its batch is also in `after`.
    """

    text: ClassVar[str] = """
        SELECT r.result FROM (
          SELECT p.id, min(p.place) AS place FROM (
            SELECT e.place, p.id, p.task, p.state FROM $edges e JOIN $jobs p ON p.id = e.needs_id
            WHERE e.job_id = :job_id
            UNION ALL
            SELECT e.place, m.id, m.task, m.state FROM $edges e JOIN $jobs m ON m.batch_id = e.batch_id
            WHERE e.job_id = :job_id AND e.batch_id IS NOT NULL) p
          WHERE p.state = 'succeeded' AND p.task = ANY (CAST(:tasks AS text[]))
          GROUP BY p.id) p
        CROSS JOIN LATERAL (
          SELECT r.result FROM $runs r WHERE r.job_id = p.id AND r.outcome = 'succeeded' ORDER BY r.id DESC LIMIT 1) r
        ORDER BY p.place, p.id"""

    def __call__(self, connection: SqlConnection, job_id: int, tasks: Sequence[str]) -> list[Any]:
        rows = self._rows(connection, {"job_id": job_id, "tasks": texts([*tasks])})
        return [result for (result,) in rows]


class ReadBatch(Statement):
    """Return the id of a job's batch, or None."""

    text: ClassVar[str] = "SELECT j.batch_id FROM $jobs j WHERE j.id = :job_id"

    def __call__(self, connection: SqlConnection, job_id: int) -> int | None:
        rows = self._rows(connection, {"job_id": job_id})
        return rows[0][0] if rows else None


class StoredUpstream:
    """Reads the workflow in its own transactions, since all that a run may see was committed before the run began."""

    def __init__(self, models: Models[Any], tables: Tables, begin: Callable[[], AbstractContextManager[Any]]) -> None:
        self._models = models
        self._begin = begin
        self._read_results = ReadResults(tables)
        self._read_batch = ReadBatch(tables)

    def results(self, job_id: int, tasks: Sequence[str]) -> list[Any]:
        """Return the results of the jobs before this one. Only succeeded jobs of these tasks count."""
        with self._begin() as connection:
            return self._read_results(connection, job_id, tasks)

    def batch(self, job_id: int) -> BatchMixin | None:
        """Return the job's batch, detached and not loaded."""
        with self._begin() as connection:
            batch_id = self._read_batch(connection, job_id)
        if batch_id is None:
            return None
        batch = self._models.Batch(id=batch_id)
        make_transient_to_detached(batch)
        return batch
