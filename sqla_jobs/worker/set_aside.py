"""Jobs that the server refuses to have changed: they are passed over, so that they hold up nothing but themselves."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import psycopg
from sqlalchemy.exc import DBAPIError

from sqla_jobs.queries import Among

T = TypeVar("T")
log = logging.getLogger("sqla_jobs.worker")

_CULPRITS = ("22", "23", "54", "P0")
"""Classes of SQLSTATE that blame a row: its data, a constraint, a limit, a trigger of the application's."""


def blames_a_row(error: Exception) -> bool:
    """Whether the server refused a statement for one of the rows that it was to change."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return (getattr(cause, "sqlstate", None) or "").startswith(_CULPRITS)


def primary_message(error: Exception) -> str:
    """What the server said, without the row that it may quote."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    said = cause.diag.message_primary if isinstance(cause, psycopg.Error) else None
    return said or str(cause)


class SetAside:
    """The jobs that this process passes over at the moment, each with the reason. Used by several threads."""

    def __init__(self, *, again: float = 60.0) -> None:
        self._again = again
        """Seconds after which one is tried again."""
        self._lock = threading.Lock()
        self._reasons: dict[int, str] = {}
        self._until: dict[int, float] = {}
        self._told: set[int] = set()

    @property
    def reasons(self) -> dict[int, str]:
        """By job id, of those passed over now; the others are tried again."""
        if not self._until:
            return {}
        with self._lock:
            now = time.monotonic()
            self._until = {job_id: until for job_id, until in self._until.items() if until > now}
            return {job_id: self._reasons[job_id] for job_id in self._until}

    def add(self, job_id: int, what: str, error: Exception) -> None:
        """Pass over this one for a while, since the server refuses `what`."""
        reason = f"{what} is refused by the server: {primary_message(error)}"
        with self._lock:
            self._reasons[job_id], self._until[job_id] = reason, time.monotonic() + self._again
            is_new = job_id not in self._told
            self._told.add(job_id)
        log.log(
            logging.ERROR if is_new else logging.DEBUG,
            "job %s is set aside, and tried again every %.0f s: %s",
            job_id,
            self._again,
            reason,
        )

    def around(self, what: str, change: Callable[[Among], T], candidates: Callable[[Among], Sequence[int]]) -> list[T]:
        """`change` of all jobs but those set aside; where the server refuses it for one of them, in ever smaller parts.

        `candidates` tells which jobs `change` would look at. Returns what each call of `change` returned.
        """
        others = Among(set_aside=self.reasons)
        try:
            return [change(others)]
        except (DBAPIError, psycopg.Error) as error:
            if not blames_a_row(error):
                raise
        return self._in_parts(what, change, candidates(others))

    def _in_parts(self, what: str, change: Callable[[Among], T], ids: Sequence[int]) -> list[T]:
        if not ids:
            return []
        try:
            return [change(Among(only=ids))]
        except (DBAPIError, psycopg.Error) as error:
            if not blames_a_row(error):
                raise
            if len(ids) == 1:
                self.add(ids[0], what, error)
                return []
        half = len(ids) // 2
        return self._in_parts(what, change, ids[:half]) + self._in_parts(what, change, ids[half:])
