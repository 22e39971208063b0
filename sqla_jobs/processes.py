"""The rows of live processes: how they are made, kept alive and taken away."""

from __future__ import annotations

import os
import socket
import uuid
from typing import Any

from sqlalchemy import Connection, delete, func, insert, update

from sqla_jobs.mapping import Models


def register(
    connection: Connection, models: Models[Any], *, kind: str, queues: dict[str, int], lease: float
) -> uuid.UUID:
    """A row for this process under a new id, never used before."""
    process_id = uuid.uuid4()
    connection.execute(
        insert(models.Process).values(
            id=process_id,
            kind=kind,
            host=socket.gethostname(),
            pid=os.getpid(),
            queues=queues,
            lease=lease,
        )
    )
    return process_id


def beat(connection: Connection, models: Models[Any], process_id: uuid.UUID) -> bool:
    """Say that the process lives. False: it was taken for dead, and all its leases are lost."""
    process = models.Process
    statement = update(process).where(process.id == process_id).values(beat_at=func.clock_timestamp())
    return bool(connection.execute(statement).rowcount)


def unregister(connection: Connection, models: Models[Any], process_id: uuid.UUID) -> None:
    """Delete the row of a process that ends: what it still held is free at once."""
    connection.execute(delete(models.Process).where(models.Process.id == process_id))
