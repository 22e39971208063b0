"""How queues and limits stand: read in one process for people and metrics, and told to one without SQLAlchemy."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from sqla_jobs.rules.error_text import message_of
from sqla_jobs.rules.limits import titled, worded
from sqla_jobs.rules.wording import Count


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """One queue. `oldest_wait` is the seconds that the job which was queued first has been due."""

    name: str
    queued: Count
    scheduled: Count
    running: int
    """Those that have begun, at most: `Held` says why."""
    claimed: int
    """Those that a worker has claimed ahead."""
    oldest_wait: float | None
    paused: bool
    paused_until: datetime | None
    pause_reason: str | None
    is_served: bool
    per_minute: int
    """Its jobs that succeeded or failed in the last minute, where that was read."""
    paused_at: datetime | None
    paused_by: str | None
    """Who that was, as far as the audit says."""


@dataclass(frozen=True, slots=True)
class LimitStatus:
    """A limit in effect. `used` are the jobs that run behind it, or the starts in the last `per` seconds."""

    gate: str
    name: str
    kind: str
    """concurrency, ordered, rate or queue."""
    key: str | None
    """As JSON; `each` where it goes for each key by itself."""
    tasks: list[str]
    running: int | None
    rate: int | None
    per: float | None
    hold: bool
    declared: dict[str, Any] | None
    """What code says of `running`, `rate`, `per`, `hold` and `burst`; None where no code does."""
    set_at: datetime | None
    """When an operator overrode that."""
    set_by: str | None
    """Who that was, where it was done by the command line or the dashboard."""
    set_reason: str | None
    """Why, if that was said."""
    changed_at: datetime
    used: int | None
    """None where that goes for each key by itself, and is a rate."""
    waiting: Count
    """Queued jobs that have to pass it."""
    next_at: datetime | None
    """When a rate that is used up lets the next one start."""

    @property
    def title(self) -> str:
        """Such as: rate mail.send of each key."""
        return titled(self.gate)

    @property
    def in_effect(self) -> str:
        """Such as: 3 at once."""
        burst = (self.declared or {}).get("burst")
        numbers = {"running": self.running, "rate": self.rate, "per": self.per, "burst": burst, "hold": self.hold}
        return worded(numbers)

    @property
    def by_code(self) -> str | None:
        """The same of what code declares."""
        return None if self.declared is None else worded(self.declared)

    @property
    def most(self) -> int | None:
        """Jobs at once, or starts in `per` seconds."""
        return self.running if self.rate is None else self.rate

    @property
    def is_closed(self) -> bool:
        """Whether nothing can ever start behind it."""
        return self.running == 0 or self.rate == 0


@dataclass(frozen=True, slots=True)
class Figures:
    """All of it, at one moment."""

    queues: list[QueueStatus]
    jobs: dict[tuple[str, str], int]
    """By state and task, up to a bound: of those that are queued or scheduled, the next ones."""
    limits: list[LimitStatus]
    """Those that are not of one key."""
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
