"""What the database knows of the jobs, in numbers: read in one process, kept for a while, and told by another."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from sqla_jobs.rules.error_text import message_of


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """One queue. `queued` and `scheduled` are counted up to a bound."""

    name: str
    queued: int
    scheduled: int
    running: int
    claimed: int
    oldest_wait: float
    """Seconds that the job which was queued first has been due; 0 if none waits."""
    is_paused: bool


@dataclass(frozen=True, slots=True)
class LimitFigures:
    """One limit in effect that is not of one key."""

    name: str
    kind: str
    is_of_each_key: bool
    """Whether `most` goes for each key by itself."""
    most: int
    used: int | None
    """The jobs that run behind it, or the starts in its time; `None`: not known."""
    waiting: int


@dataclass(frozen=True, slots=True)
class Figures:
    """All of it, at one moment."""

    queues: list[QueueFigures]
    jobs: dict[tuple[str, str], int]
    """By state and task, up to a bound: of those that are queued or scheduled, the next ones."""
    limits: list[LimitFigures]
    alive: dict[str, int]
    """Processes that live, by kind: workers and clocks."""
    dead: dict[str, int]
    """Processes whose lease has run out, and whose rows are still there, by kind."""
    oldest_heartbeat: dict[str, float]
    """Seconds since the oldest of the last heartbeats of those that live, by kind."""


T = TypeVar("T")
log: logging.Logger = logging.getLogger("sqla_jobs.monitoring")

_REST = 20
"""An answer is cached for at least this many times as long as it took, unless it is `None` or an error."""


class Cached(Generic[T]):
    """A cache for the answer of `ask`, valid for `seconds` after it arrived, even if it is `None` or an error.

    `ask` runs in a thread of its own, once at a time, however many threads call `get`.
    """

    def __init__(self, ask: Callable[[], T], *, seconds: float, patience: float) -> None:
        self._ask = ask
        self._seconds = seconds
        self._patience = patience
        self._lock = threading.Lock()
        self._answer: Future[T] | None = None
        self._keep_until = 0.0
        self._has_failed = False

    def get(self) -> T | None:
        """Return the answer. Return `None` if `ask` failed or takes longer than `patience` seconds."""
        try:
            return self._current().result(self._patience)
        except Exception:  # noqa: BLE001 - `_find` has logged it
            return None

    def _current(self) -> Future[T]:
        with self._lock:
            if self._answer is None or (self._answer.done() and time.monotonic() >= self._keep_until):
                self._answer = Future()
                threading.Thread(target=self._find, args=(self._answer,), name="sqla_jobs-figures", daemon=True).start()
            return self._answer

    def _find(self, answer: Future[T]) -> None:
        began = time.monotonic()
        try:
            found = self._ask()
        except BaseException as error:  # noqa: BLE001 - raised in the waiting threads
            log.log(
                logging.DEBUG if self._has_failed else logging.WARNING, "cannot read metrics: %s", message_of(error)
            )
            self._has_failed = True
            self._keep_until = time.monotonic() + self._seconds
            answer.set_exception(error)
        else:
            self._has_failed = False
            now = time.monotonic()
            took = 0.0 if found is None else now - began
            self._keep_until = now + max(self._seconds, _REST * took)
            answer.set_result(found)
