"""The place of one worker process under a parent."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from sqla_jobs.supervisor.child import ChildProcess

_HEALTHY = 60.0
"""Seconds after which an end is a new misfortune, and not the same one again."""
_MAX_BACKOFF = 30.0


class Slot:
    """Held by one child at a time, which others take after it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.child: ChildProcess | None = None
        self.successor: ChildProcess | None = None
        """Being started, to take over once it is ready."""
        self.start_at = 0.0
        """No child is started here before that moment, by `time.monotonic()`."""
        self.is_done = False
        """Nothing is left to do here, and nobody takes it any more."""
        self._failures = 0

    @property
    def children(self) -> Iterator[ChildProcess]:
        """Who holds it, and who is about to."""
        return (child for child in (self.child, self.successor) if child is not None)

    @property
    def is_vacant(self) -> bool:
        """Whether a child is to be started here now."""
        return self.child is None and not self.is_done and time.monotonic() >= self.start_at

    def succeed(self) -> ChildProcess | None:
        """The successor, where there is one, takes over; returns who held it."""
        old, self.child, self.successor = self.child, self.successor, None
        return old

    def hold_back(self, failed: ChildProcess) -> float:
        """Start the next one only after a while, which grows from failure to failure; returns the seconds."""
        now = time.monotonic()
        is_new = failed.ready_at is not None and now - failed.ready_at > _HEALTHY
        self._failures = 1 if is_new else self._failures + 1
        seconds = 0.0 if self._failures == 1 else min(_MAX_BACKOFF, 0.25 * 2**self._failures)
        seconds *= random.uniform(0.75, 1.25)  # noqa: S311 - so that not all start at once
        self.start_at = now + seconds
        return seconds
