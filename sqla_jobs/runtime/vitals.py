"""A process's health data for people: its host's clock offset, and the time when its last job ended."""

from __future__ import annotations

import time
import uuid
from typing import Any

import sqlalchemy as sa

from sqla_jobs.models.mapping import Models
from sqla_jobs.queries import processes
from sqla_jobs.rules.every import Every

_STAMP = 3.0
"""The shortest time, in seconds, between two updates of the time when the last job ended."""
_MEASURE = 60.0
"""Seconds between two comparisons of the host's and the server's clocks.

The first comparison is made when the process registers.
"""


class Vitals:
    """Stores health data in a process's row, at most every few seconds, and only if it is new."""

    def __init__(self, engine: sa.Engine, models: Models[Any]) -> None:
        self._engine = engine
        self._models = models
        self._stamped_at = time.monotonic()
        self._measuring = Every(_MEASURE, first_in=_MEASURE)

    def show(self, process_id: uuid.UUID, ended_at: float | None = None) -> None:
        """Update the row if an update is due. `ended_at` is the time when the last job ended, by `time.monotonic()`."""
        now = time.monotonic()
        is_to_measure = self._measuring.is_over()
        is_new = ended_at is not None and ended_at > self._stamped_at and now > self._stamped_at + _STAMP
        if not is_to_measure and not is_new:
            return
        with self._engine.begin() as connection:
            offset = processes.clock_offset(connection) if is_to_measure else None
            idle = time.monotonic() - ended_at if ended_at is not None else None
            processes.stamp(connection, self._models, process_id, idle=idle, offset=offset)
        self._stamped_at = now
