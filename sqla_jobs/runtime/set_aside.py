"""Rows that nothing can be done with: they are passed over, so that they hold up nothing but themselves."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from sqla_jobs.calls.statements import Calls, Transactions
from sqla_jobs.calls.values import Among
from sqla_jobs.database.refusals import blames_a_row, in_parts, reason

T = TypeVar("T")
log: logging.Logger = logging.getLogger("sqla_jobs.worker")

EVENT_LOOP = "event loop"
"""The name under which a process shows what holds up its event loop."""


class SetAside:
    """The rows that this process passes over at the moment, each with the reason. Used by several threads."""

    def __init__(self, kind: str = "job", *, again: float = 60.0) -> None:
        self._kind = kind
        self._again = again
        """Seconds after which one is tried again."""
        self._lock = threading.Lock()
        self._reasons: dict[int, str] = {}
        self._until: dict[int, float] = {}
        self._told: set[int] = set()
        self._shown: tuple[uuid.UUID | None, dict[str, str]] = (None, {})
        self.notes: dict[str, Callable[[], str | None]] = {}
        """What else holds up the process, shown beside the rows: by a name, while there is something to say."""

    @property
    def reasons(self) -> dict[int, str]:
        """By id, of those passed over now; the others are tried again."""
        if not self._until:
            return {}
        with self._lock:
            now = time.monotonic()
            self._until = {row_id: until for row_id, until in self._until.items() if until > now}
            return {row_id: self._reasons[row_id] for row_id in self._until}

    def refused(self, what: str, row_id: int, error: Exception) -> None:
        """Pass over this one for a while, since the server refuses `what`."""
        self.add(row_id, f"{what} is refused by the server: {reason(error)}")

    def add(self, row_id: int, why: str) -> None:
        """Pass over this one for a while."""
        self._keep(row_id, why)
        with self._lock:
            is_new = row_id not in self._told
            self._told.add(row_id)
        log.log(
            logging.ERROR if is_new else logging.DEBUG,
            "%s %s is set aside, and tried again every %.0f s: %s",
            self._kind,
            row_id,
            self._again,
            why,
        )

    def pass_over(self, row_id: int, why: str, *, most: int) -> bool:
        """Pass over this one for a while, for another reason. False: `most` are passed over already."""
        if len(self.reasons) >= most:
            return False
        self._keep(row_id, why)
        return True

    def _keep(self, row_id: int, why: str) -> None:
        with self._lock:
            self._reasons[row_id], self._until[row_id] = why, time.monotonic() + self._again

    def show(self, engine: Transactions, queries: Calls, process_id: uuid.UUID) -> None:
        """Show them in the row of this process, beside what others show there. By one thread alone."""
        reasons = {f"{self._kind} {row_id}": why for row_id, why in self.reasons.items()}
        reasons |= {name: said for name, note in self.notes.items() if (said := note()) is not None}
        if (process_id, reasons) == self._shown or not (reasons or self._shown[1]):
            return
        before, shown = self._shown
        gone = shown.keys() - reasons.keys() if before == process_id else ()
        with engine.begin() as connection:
            queries.show_set_aside(connection, process_id, reasons=reasons, gone=gone)
        self._shown = process_id, reasons

    def around(self, what: str, change: Callable[[Among], T], candidates: Callable[[Among], Sequence[int]]) -> list[T]:
        """`change` of all rows but those set aside; where the server refuses it for one of them, in ever smaller parts.

        `candidates` tells the ids of those that `change` would look at. Returns what each call of `change` returned.
        """
        others = Among(set_aside=self.reasons)
        try:
            return [change(others)]
        except Exception as error:
            if not blames_a_row(error):
                raise
        return in_parts(candidates(others), lambda ids: change(Among(only=ids)), partial(self.refused, what))
