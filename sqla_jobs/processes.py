"""The rows of live processes: how they are made and taken away."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, delete, insert, literal, update
from sqlalchemy.dialects.postgresql import JSONB

from sqla_jobs.mapping import Models
from sqla_jobs.outcomes import storable


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


def unregister(connection: Connection, models: Models[Any], process_id: uuid.UUID) -> None:
    """Delete the row of a process that ends: what it still held is free at once."""
    connection.execute(delete(models.Process).where(models.Process.id == process_id))


def show_set_aside(
    connection: Connection, models: Models[Any], process_id: uuid.UUID, reasons: Mapping[int, str]
) -> None:
    """Let everybody see which jobs this process passes over, and why."""
    _set_aside(connection, models, process_id, literal(_shown(reasons), JSONB))


def add_set_aside(
    connection: Connection, models: Models[Any], process_id: uuid.UUID, reasons: Mapping[int, str]
) -> None:
    """The same of jobs that its parent passes over, beside its own."""
    _set_aside(connection, models, process_id, models.Process.set_aside.concat(literal(_shown(reasons), JSONB)))


def _shown(reasons: Mapping[int, str]) -> dict[str, str]:
    return {str(job_id): storable(reason, 500) for job_id, reason in reasons.items()}


def _set_aside(connection: Connection, models: Models[Any], process_id: uuid.UUID, value: Any) -> None:
    connection.execute(update(models.Process).where(models.Process.id == process_id).values(set_aside=value))
