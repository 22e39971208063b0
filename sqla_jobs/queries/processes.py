"""The rows of live processes: how they are made and taken away."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import ARRAY, Connection, Text, delete, insert, literal, update
from sqlalchemy.dialects.postgresql import JSONB

from sqla_jobs.models.mapping import Models
from sqla_jobs.rules.outcomes import storable


def register(
    connection: Connection,
    models: Models[Any],
    *,
    kind: str,
    queues: dict[str, int],
    connections: int,
    lease: float,
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
            connections=connections,
            lease=lease,
        )
    )
    return process_id


def unregister(connection: Connection, models: Models[Any], process_id: uuid.UUID) -> None:
    """Delete the row of a process that ends: what it still held is free at once."""
    connection.execute(delete(models.Process).where(models.Process.id == process_id))


def show_set_aside(
    connection: Connection,
    models: Models[Any],
    process_id: uuid.UUID,
    *,
    reasons: Mapping[str, str],
    gone: Collection[str],
) -> None:
    """Let everybody see which rows this process passes over, and why; no longer those that are `gone`."""
    process = models.Process
    rest = process.set_aside.op("-", return_type=JSONB())(literal(list(gone), ARRAY(Text)))
    shown = {name: storable(reason, 500) for name, reason in reasons.items()}
    statement = update(process).where(process.id == process_id).values(set_aside=rest.concat(literal(shown, JSONB)))
    connection.execute(statement)
