"""Live processes, and the rescue of jobs from dead processes."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import sqlalchemy as sa

from sqla_jobs.queries.expressions import (
    Tables,
    messages,
    unnest,
)
from sqla_jobs.queries.pieces import read
from sqla_jobs.queries.statement import SqlConnection, Statement
from sqla_jobs.queries.values import ALL, MANY, Among, Rescued


class Rescue(Statement):
    """Rescue running jobs whose process has no row, and store a `lost` run for each job."""

    text: ClassVar[str] = read("rescue")

    def __call__(self, connection: SqlConnection, *, limit: int = MANY, among: Among = ALL) -> list[Rescued]:
        return [Rescued(*row) for row in self._rows(connection, {"limit": limit, **among.parameters()})]


def is_orphaned(tables: Tables) -> Any:
    """Return the condition that the job is running and its process has no row."""
    jobs = tables.jobs
    return sa.and_(jobs.c.state == "running", jobs.c.process_id.not_in(sa.select(tables.processes.c.id)))


class Heartbeats(Statement):
    """Read the last heartbeat of each process, in microseconds since 1970, and its lease in seconds."""

    def __call__(self, connection: SqlConnection) -> dict[uuid.UUID, tuple[int, float]]:
        return {process_id: (heartbeat, lease) for process_id, heartbeat, lease in self._rows(connection, {})}

    def sql(self) -> Any:
        processes = self.tables.processes
        return sa.select(processes.c.id, _heartbeat(processes), processes.c.lease)


def _heartbeat(processes: Any) -> Any:
    return sa.cast(sa.func.extract("epoch", processes.c.heartbeat_at) * 1_000_000, sa.BigInteger)


class DeleteExpired(Statement):
    """Delete the rows of processes whose heartbeat still equals the given value. Skip locked rows."""

    def __call__(self, connection: SqlConnection, silent: Mapping[uuid.UUID, int]) -> list[uuid.UUID]:
        """Return the ids of the deleted rows."""
        values = {"process_ids": list(silent), "heartbeats": list(silent.values())}
        return [process_id for (process_id,) in self._rows(connection, values)]

    def sql(self) -> Any:
        processes = self.tables.processes
        seen = unnest("seen", id=("process_ids", sa.Uuid), heartbeat=("heartbeats", sa.BigInteger))
        silent = sa.and_(processes.c.id == seen.c.id, _heartbeat(processes) == seen.c.heartbeat)
        rows = sa.select(processes.c.id).select_from(processes.join(seen, silent))
        free = rows.with_for_update(skip_locked=True, of=processes).cte("free").prefix_with("MATERIALIZED")
        gone = (
            sa.delete(processes).where(processes.c.id.in_(sa.select(free.c.id))).returning(processes.c.id).cte("gone")
        )
        # notify workers, since only the deleted processes knew when the retries of their jobs were due
        any_queue = sa.select(sa.literal_column("''", sa.Text).label("queue")).where(sa.exists().select_from(gone))
        return sa.select(gone.c.id).where(messages(self.tables, any_queue))


class SignOff(Statement):
    """Delete the row of a process that ended."""

    def __call__(self, connection: SqlConnection, process_id: uuid.UUID) -> bool:
        """Return whether the row is gone.

        False means that a claim by the process is still in progress on the server.
        """
        ((is_gone,),) = self._rows(connection, {"process_id": process_id})
        return bool(is_gone)

    def sql(self) -> Any:
        processes = self.tables.processes
        rows = sa.select(processes.c.id).where(processes.c.id == sa.bindparam("process_id", type_=sa.Uuid))
        free = rows.with_for_update(skip_locked=True).cte("free").prefix_with("MATERIALIZED")
        gone = (
            sa.delete(processes).where(processes.c.id.in_(sa.select(free.c.id))).returning(processes.c.id).cte("gone")
        )
        there, left = (
            sa.select(sa.func.count()).select_from(which).scalar_subquery() for which in (rows.subquery(), gone)
        )
        return sa.select(there == left)


class Beat(Statement):
    """Write the heartbeats of processes."""

    def __call__(self, connection: SqlConnection, process_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, bool]:
        """Return, for each process that has a row, whether its heartbeat was written.

        False means that the process's row is locked.
        """
        return dict(self._rows(connection, {"process_ids": list(process_ids)}))

    def sql(self) -> Any:
        processes = self.tables.processes
        rows = sa.select(processes.c.id).where(
            processes.c.id == sa.any_(sa.bindparam("process_ids", type_=sa.ARRAY(sa.Uuid)))
        )
        free = rows.with_for_update(skip_locked=True, key_share=True).cte("free").prefix_with("MATERIALIZED")
        beaten = (
            sa.update(processes)
            .where(processes.c.id.in_(sa.select(free.c.id)))
            .values(heartbeat_at=sa.func.clock_timestamp())
            .returning(processes.c.id)
            .cte("beaten")
        )
        return rows.add_columns(processes.c.id.in_(sa.select(beaten.c.id)))
