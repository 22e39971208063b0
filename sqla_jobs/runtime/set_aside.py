"""Rows that the server refuses to change. Such rows are set aside, so that they do not block other rows."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import sqlalchemy as sa

from sqla_jobs.database.refusals import blames_a_row, in_parts, reason
from sqla_jobs.queries import Queries
from sqla_jobs.queries.values import Among

T = TypeVar("T")
log: logging.Logger = logging.getLogger("sqla_jobs.worker")

EVENT_LOOP = "event loop"
"""The name under which a process shows that its event loop is blocked."""


class SetAside:
    """The rows that this process currently skips, each with the reason. Thread-safe."""

    def __init__(self, kind: str = "job", *, again: float = 60.0) -> None:
        self._kind = kind
        self._again = again
        """Seconds after which a row is tried again."""
        self._lock = threading.Lock()
        self._rows: dict[int, tuple[str, float]] = {}
        """For each row, the reason, and until when the row is skipped, by `time.monotonic()`."""
        self._logged: set[int] = set()
        self._shown: tuple[uuid.UUID | None, dict[str, str]] = (None, {})
        self.notes: dict[str, Callable[[], str | None]] = {}
        """Other reasons for delays, shown alongside the rows.

        Each function returns a reason, or None if there is none.
        """

    @property
    def reasons(self) -> dict[int, str]:
        """The reasons by row id, for the rows that are currently being skipped."""
        if not self._rows:
            return {}
        with self._lock:
            now = time.monotonic()
            for row_id in [row_id for row_id, (_, until) in self._rows.items() if until <= now]:
                del self._rows[row_id]
            return {row_id: why for row_id, (why, _) in self._rows.items()}

    def refused(self, what: str, row_id: int, error: Exception) -> None:
        """Set a row aside because the server refused the change that `what` names."""
        self.add(row_id, f"{what} is refused by the server: {reason(error)}")

    def add(self, row_id: int, why: str) -> None:
        """Set a row aside, and log it as an error the first time."""
        with self._lock:
            self._rows[row_id] = why, time.monotonic() + self._again
            is_new = row_id not in self._logged
            self._logged.add(row_id)
        log.log(
            logging.ERROR if is_new else logging.DEBUG,
            "%s %s is set aside, and tried again every %.0f s: %s",
            self._kind,
            row_id,
            self._again,
            why,
        )

    def show(self, engine: sa.Engine, queries: Queries, process_id: uuid.UUID) -> None:
        """Store the reasons in this process's row, alongside reasons from other sources.

        Call this from one thread only.
        """
        reasons = {f"{self._kind} {row_id}": why for row_id, why in self.reasons.items()}
        reasons |= {name: text for name, note in self.notes.items() if (text := note()) is not None}
        if (process_id, reasons) == self._shown or not (reasons or self._shown[1]):
            return
        before, shown = self._shown
        gone = shown.keys() - reasons.keys() if before == process_id else ()
        with engine.begin() as connection:
            queries.show_set_aside(connection, process_id, reasons=reasons, gone=gone)
        self._shown = process_id, reasons

    def around(self, what: str, change: Callable[[Among], T], candidates: Callable[[Among], Sequence[int]]) -> list[T]:
        """Apply `change` to all rows that are not set aside.

        Isolate and set aside rows that the server refuses to change.

        First, `change` is applied to all rows together. If the server blames a row, the rows are tried in ever smaller
        parts. For this, `candidates` returns the ids of the rows that `change` would process. Return the results of all
        successful calls.
        """
        others = Among(set_aside=self.reasons)
        try:
            return [change(others)]
        except Exception as error:
            if not blames_a_row(error):
                raise
        return in_parts(candidates(others), lambda ids: change(Among(only=ids)), partial(self.refused, what))
