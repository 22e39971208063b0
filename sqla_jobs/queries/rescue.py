"""Live processes, and the rescue of jobs from dead processes."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from typing import ClassVar

from sqla_jobs.queries.pieces import read
from sqla_jobs.queries.statement import SqlConnection, Statement
from sqla_jobs.queries.values import ALL, MANY, Among, Rescued, numbers


class Rescue(Statement):
    """Rescue running jobs whose process has no row, and store a `lost` run for each job."""

    text: ClassVar[str] = read("rescue")

    def __call__(self, connection: SqlConnection, *, limit: int = MANY, among: Among = ALL) -> list[Rescued]:
        return [Rescued(*row) for row in self._rows(connection, {"limit": limit, **among.parameters()})]


_HEARTBEAT = "CAST(extract(epoch FROM p.heartbeat_at) * 1000000 AS bigint)"


class Heartbeats(Statement):
    """Read the last heartbeat of each process, in microseconds since 1970, and its lease in seconds."""

    text: ClassVar[str] = f"SELECT p.id, {_HEARTBEAT}, p.lease FROM $processes p"

    def __call__(self, connection: SqlConnection) -> dict[uuid.UUID, tuple[int, float]]:
        return {process_id: (heartbeat, lease) for process_id, heartbeat, lease in self._rows(connection, {})}


class DeleteExpired(Statement):
    """Delete the rows of processes whose heartbeat still equals the given value. Skip locked rows.

    Workers are told, since only the deleted processes knew when the retries of their jobs were due.
    """

    text: ClassVar[str] = f"""
        WITH free AS MATERIALIZED (
            SELECT p.id FROM $processes p
            JOIN unnest(CAST(:process_ids AS uuid[]), CAST(:heartbeats AS bigint[])) seen (id, heartbeat)
              ON seen.id = p.id AND seen.heartbeat = {_HEARTBEAT}
            FOR UPDATE OF p SKIP LOCKED
        ), gone AS (
            DELETE FROM $processes WHERE id IN (SELECT id FROM free) RETURNING id
        ), message AS MATERIALIZED (
            SELECT '' AS text WHERE EXISTS (SELECT FROM gone)
        )
        SELECT id FROM gone WHERE $workers_are_told"""

    def __call__(self, connection: SqlConnection, silent: Mapping[uuid.UUID, int]) -> list[uuid.UUID]:
        """Return the ids of the deleted rows."""
        values = {"process_ids": numbers(silent), "heartbeats": numbers(silent.values())}
        return [process_id for (process_id,) in self._rows(connection, values)]


class SignOff(Statement):
    """Delete the row of a process that ended."""

    text: ClassVar[str] = """
        WITH free AS MATERIALIZED (
            SELECT id FROM $processes WHERE id = CAST(:process_id AS uuid) FOR UPDATE SKIP LOCKED
        ), gone AS (
            DELETE FROM $processes WHERE id IN (SELECT id FROM free) RETURNING id
        )
        SELECT (SELECT count(*) FROM $processes WHERE id = CAST(:process_id AS uuid)) = (SELECT count(*) FROM gone)"""

    def __call__(self, connection: SqlConnection, process_id: uuid.UUID) -> bool:
        """Return whether the row is gone.

        False means that a claim by the process is still in progress on the server.
        """
        ((is_gone,),) = self._rows(connection, {"process_id": process_id})
        return bool(is_gone)


class Beat(Statement):
    """Write the heartbeats of processes."""

    text: ClassVar[str] = """
        WITH free AS MATERIALIZED (
            SELECT id FROM $processes WHERE id = ANY (CAST(:process_ids AS uuid[])) FOR NO KEY UPDATE SKIP LOCKED
        ), beaten AS (
            UPDATE $processes SET heartbeat_at = clock_timestamp() WHERE id IN (SELECT id FROM free) RETURNING id
        )
        SELECT id, id IN (SELECT id FROM beaten) FROM $processes WHERE id = ANY (CAST(:process_ids AS uuid[]))"""

    def __call__(self, connection: SqlConnection, process_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, bool]:
        """Return, for each process that has a row, whether its heartbeat was written.

        False means that the process's row is locked.
        """
        return dict(self._rows(connection, {"process_ids": numbers(process_ids)}))
