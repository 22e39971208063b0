"""The rows of live processes: registration, health and removal."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Collection, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

import sqlalchemy as sa

from sqla_jobs.database.notify import notify
from sqla_jobs.models.mapping import Models
from sqla_jobs.queries.expressions import locked, seconds
from sqla_jobs.queries.statement import SqlConnection, Statement
from sqla_jobs.queries.values import texts
from sqla_jobs.rules.outcomes import storable


@cache
def code_version() -> str:
    """Return the installed version of this library; empty if the library is not installed as a package."""
    try:
        return version("sqla-jobs")
    except PackageNotFoundError:
        return ""


def clock_offset(connection: sa.Connection) -> float:
    """Return the seconds by which this host's clock is ahead of the server's, accurate to half a round trip."""
    before = time.time()
    server = connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())::float8").scalar_one()
    return (before + time.time()) / 2 - float(server)


def register(
    connection: sa.Connection,
    models: Models[Any],
    *,
    kind: str,
    queues: dict[str, int],
    connections: int = 0,
    lease: float,
    tasks: Mapping[str, Any] | None = None,
) -> uuid.UUID:
    """Insert a row for this process under an id that has never been used before.

    `tasks` holds, for each of a worker's tasks, the parameters that its code accepts.
    """
    process_id = uuid.uuid4()
    offset = clock_offset(connection)
    connection.execute(
        sa.insert(models.Process).values(
            id=process_id,
            kind=kind,
            host=socket.gethostname(),
            pid=os.getpid(),
            queues=queues,
            connections=connections,
            version=code_version(),
            clock_offset=offset,
            lease=lease,
            tasks=tasks,
        )
    )
    return process_id


def age_of(moment: Any) -> sa.ColumnElement[float]:
    """Return the seconds since a given time, by the server's clock; -infinity for a parked job's `run_at`."""
    # not the epoch of a difference: PostgreSQL before 17 cannot subtract an infinite time
    return sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()) - sa.func.extract("epoch", moment), sa.Double)


def is_alive(process: Any) -> sa.ColumnElement[bool]:
    """Return the condition that the process's lease has not run out since its last heartbeat."""
    found: sa.ColumnElement[bool] = age_of(process.heartbeat_at) < process.lease
    return found


def stamp(
    connection: sa.Connection, models: Models[Any], process_id: uuid.UUID, *, idle: float | None, offset: float | None
) -> None:
    """Record that a job last ended `idle` seconds ago, and record the clock's `offset`.

    Skip a value that is None. Skip a locked row.
    """
    process = models.Process
    free = locked(sa.select(process.id).where(process.id == process_id), "free", of=process)
    values: dict[str, Any] = {}
    if idle is not None:
        values["last_finished_at"] = sa.func.clock_timestamp() - seconds(idle)
    if offset is not None:
        values["clock_offset"] = offset
    connection.execute(sa.update(process).where(process.id.in_(sa.select(free.c.id))).values(values))


def unregister(connection: sa.Connection, models: Models[Any], process_id: uuid.UUID) -> None:
    """Delete the row of a process that is ending, so that other workers rescue its jobs immediately.

    Other workers are notified, since only this process knew when the retries of its jobs were due.
    """
    connection.execute(sa.delete(models.Process).where(models.Process.id == process_id))
    notify(connection, models.channel, [""])


class ShowStalled(Statement):
    """Record in a process's row that the process has executed nothing for `silence` seconds.

    A `silence` of `None` means that the process runs again.
    """

    text: ClassVar[str] = """
        WITH free AS MATERIALIZED (
            SELECT id FROM $processes WHERE id = CAST(:process_id AS uuid) FOR NO KEY UPDATE SKIP LOCKED
        )
        UPDATE $processes SET stalled_since = clock_timestamp() - CAST(:silence AS float8) * INTERVAL '1 second'
        WHERE id IN (SELECT id FROM free) RETURNING id"""

    def __call__(self, connection: SqlConnection, process_id: uuid.UUID, silence: float | None) -> bool:
        """Return whether the row was updated. False means that it is locked or does not exist."""
        return bool(self._rows(connection, {"process_id": process_id, "silence": silence}))


class ShowSetAside(Statement):
    """Record in a process's row which rows it has set aside, with reasons. Remove the entries named in `gone`."""

    text: ClassVar[str] = """
        UPDATE $processes SET set_aside = (set_aside - CAST(:gone AS text[])) || CAST(:shown AS jsonb)
        WHERE id = CAST(:process_id AS uuid)"""

    def __call__(
        self, connection: SqlConnection, process_id: uuid.UUID, *, reasons: Mapping[str, str], gone: Collection[str]
    ) -> None:
        shown = {name: storable(reason, 500) for name, reason in reasons.items()}
        self._run(connection, {"process_id": process_id, "gone": texts([*gone]), "shown": json.dumps(shown)})
