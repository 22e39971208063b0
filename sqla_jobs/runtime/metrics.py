"""The status of queues and limits, for people and metrics."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from sqla_jobs.rules.error_text import message_of
from sqla_jobs.rules.limits import titled, worded
from sqla_jobs.rules.wording import Count


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """The status of one queue. `oldest_wait` is the number of seconds since the longest-queued job became due."""

    name: str
    queued: Count
    scheduled: Count
    blocked: Count
    """Jobs that wait for other jobs."""
    running: int
    """An upper bound on the number of jobs that have started. See `Held` for why this is only an upper bound."""
    claimed: int
    """Jobs that workers have claimed but not yet started."""
    oldest_wait: float | None
    paused: bool
    paused_until: datetime | None
    pause_reason: str | None
    is_served: bool
    per_minute: int
    """The number of the queue's jobs that succeeded or failed in the last minute, if that was read."""
    paused_at: datetime | None
    paused_by: str | None
    """The person who paused the queue, if the audit log names one."""


@dataclass(frozen=True, slots=True)
class LimitStatus:
    """A limit in effect. `used` counts the limit's running jobs, or the starts that count."""

    gate: str
    name: str
    kind: str
    """One of: concurrency, ordered, rate, queue."""
    key: str | None
    """The key, as JSON; `each` if the limit applies to each key separately."""
    tasks: list[str]
    running: int | None
    rate: int | None
    per: float | None
    hold: bool
    declared: dict[str, Any] | None
    """The declared values of `running`, `rate`, `per`, `hold` and `burst`. None if no code declares the limit."""
    set_at: datetime | None
    """When an operator overrode the declared values."""
    set_by: str | None
    """The person who overrode the declared values, if that was done on the command line or the dashboard."""
    set_reason: str | None
    """The reason for the override, if one was given."""
    changed_at: datetime
    used: int | None
    """The number of running jobs or recent starts. None for a rate that applies to each key."""
    waiting: Count
    """Queued jobs that must pass the limit."""
    next_at: datetime | None
    """When the next job may start, if the limit is a rate that is used up."""

    @property
    def title(self) -> str:
        """The limit's title, such as: rate mail.send of each key."""
        return titled(self.gate)

    @property
    def in_effect(self) -> str:
        """The values in effect, in words, such as: 3 at once."""
        numbers = {"running": self.running, "rate": self.rate, "per": self.per, "hold": self.hold}
        return worded({**(self.declared or {}), **numbers})

    @property
    def by_code(self) -> str | None:
        """The declared values, in words. None if no code declares the limit."""
        return None if self.declared is None else worded(self.declared)

    @property
    def most(self) -> int | None:
        """The maximum number of simultaneous jobs, or of starts in `per` seconds."""
        return self.running if self.rate is None else self.rate

    @property
    def is_closed(self) -> bool:
        """True if no job can ever start behind the limit."""
        return self.running == 0 or self.rate == 0


@dataclass(frozen=True, slots=True)
class Figures:
    """All figures, read at the same time."""

    queues: list[QueueStatus]
    jobs: dict[tuple[str, str], int]
    """The number of jobs by state and task, up to a bound.

    Of the queued and scheduled jobs, only those that come next are counted.
    """
    running: set[tuple[str, str]]
    """The tasks and queues of the running jobs."""
    limits: list[LimitStatus]
    """The limits, except those that apply to only one key."""
    alive: dict[str, int]
    """By kind, the number of live processes: workers and clocks."""
    dead: dict[str, int]
    """By kind, the number of processes whose lease has expired but whose row still exists."""
    oldest_heartbeat: dict[str, float]
    """By kind of process, the longest time in seconds since a live process's last heartbeat."""


ByShard = Mapping[str, Figures | None]
"""The figures of each database by name; None for one that does not answer. A single database has no name."""
T = TypeVar("T")
log: logging.Logger = logging.getLogger("sqla_jobs.monitoring")

_REST = 20
"""An answer is cached for at least this many times as long as it took to get, unless it is `None` or an error."""


@dataclass(frozen=True, slots=True)
class _Answer(Generic[T]):
    value: T | None
    """None also after an error."""
    has_failed: bool
    keep_until: float
    """When to ask again, by `time.monotonic()`."""


class Cached(Generic[T]):
    """A cache for the answer of `ask`. An answer is valid for at least `seconds`, even if it is `None` or an error.

    `ask` runs in its own thread. Only one call runs at a time, even if many threads call `get`.
    """

    def __init__(self, ask: Callable[[], T], *, seconds: float, patience: float) -> None:
        self._ask = ask
        self._seconds = seconds
        self._patience = patience
        self._lock = threading.Lock()
        self._answer = Future[_Answer[T]]()
        self._answer.set_result(_Answer(None, has_failed=False, keep_until=0.0))

    def get(self) -> T | None:
        """Return the answer. Return `None` if `ask` failed or takes longer than `patience` seconds."""
        try:
            return self._current().result(self._patience).value
        except TimeoutError:
            return None

    def _current(self) -> Future[_Answer[T]]:
        with self._lock:
            if self._answer.done() and time.monotonic() >= (last := self._answer.result()).keep_until:
                answer = Future[_Answer[T]]()
                args = (answer, last.has_failed)
                threading.Thread(target=self._find, args=args, name="sqla_jobs-figures", daemon=True).start()
                self._answer = answer  # only now: if no thread can be started, nobody would ever set it
            return self._answer

    def _find(self, answer: Future[_Answer[T]], has_failed_before: bool) -> None:
        began, found, has_failed = time.monotonic(), None, False
        try:
            found = self._ask()
        except BaseException as error:  # noqa: BLE001 - the waiting threads get None
            level = logging.DEBUG if has_failed_before else logging.WARNING
            log.log(level, "cannot read metrics: %s", message_of(error))
            has_failed = True
        now = time.monotonic()
        took = 0.0 if found is None else now - began
        answer.set_result(_Answer(found, has_failed, now + max(self._seconds, _REST * took)))
