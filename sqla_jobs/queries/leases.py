"""The leases of a process, and the progress of its running jobs."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from typing import ClassVar

from sqla_jobs.queries.statement import SqlConnection, Statement
from sqla_jobs.queries.values import Claimed, Lease, numbers, texts


class Leases(Statement):
    """Find the leases of one process, except those whose run ids are in `known`."""

    text: ClassVar[str] = """
        SELECT j.id, j.current_run_id, j.process_id, j.task, j.queue, j.attempt, j.max_attempts, CAST(j.headers AS text)
        FROM $jobs j WHERE j.state = 'running' AND j.process_id = CAST(:process_id AS uuid)
          AND j.current_run_id <> ALL (CAST(:known AS bigint[]))
          AND (CAST(:age AS float8) IS NULL OR j.started_at > statement_timestamp()
            OR j.started_at < statement_timestamp() - CAST(:age AS float8) * INTERVAL '1 second')"""

    def __call__(
        self,
        connection: SqlConnection,
        process_id: uuid.UUID,
        known: Collection[int] = (),
        *,
        age: float | None = None,
    ) -> list[Lease]:
        """Return the leases of this process that are not in `known`, of any age or older than `age` seconds.

        A lease that begins ahead of the clock is older: the clock was set back since.
        """
        values = {"process_id": process_id, "known": numbers(known), "age": age}
        return [Lease(*row) for row in self._rows(connection, values)]


class CancelRequests(Statement):
    """Find the runs that somebody has asked to cancel, among one process's runs of the given jobs."""

    text: ClassVar[str] = """
        SELECT j.current_run_id, j.kill_requested FROM $jobs j
        WHERE j.id = ANY (CAST(:ids AS bigint[])) AND j.process_id = CAST(:process_id AS uuid)
          AND j.cancel_requested_at IS NOT NULL"""

    def __call__(self, connection: SqlConnection, process_id: uuid.UUID, job_ids: Collection[int]) -> dict[int, bool]:
        """Return, by run id, whether the process must be killed to end the run."""
        return dict(self._rows(connection, {"process_id": process_id, "ids": numbers(job_ids)}))


class StoreProgress(Statement):
    """Store the latest progress of some attempts."""

    text: ClassVar[str] = """
        WITH mine AS MATERIALIZED (
            SELECT j.id, e.fraction, e.message FROM $jobs j
            JOIN unnest(CAST(:job_ids AS bigint[]), CAST(:run_ids AS bigint[]), CAST(:process_ids AS uuid[]),
              CAST(:fractions AS float8[]), CAST(:messages AS text[]))
              e (job_id, run_id, process_id, fraction, message) ON $end_has_lease
            FOR NO KEY UPDATE OF j SKIP LOCKED
        )
        UPDATE $jobs j SET progress = m.fraction, progress_message = m.message FROM mine m WHERE j.id = m.id"""

    def __call__(
        self, connection: SqlConnection, progress: Sequence[tuple[Lease | Claimed, float, str | None]]
    ) -> None:
        """Store the progress of attempts whose lease is still valid and whose row is not locked."""
        values = {
            "job_ids": numbers([lease.job_id for lease, _, _ in progress]),
            "run_ids": numbers([lease.run_id for lease, _, _ in progress]),
            "process_ids": numbers([lease.process_id for lease, _, _ in progress]),
            "fractions": numbers([fraction for _, fraction, _ in progress]),
            "messages": texts([message for _, _, message in progress]),
        }
        self._run(connection, values)
