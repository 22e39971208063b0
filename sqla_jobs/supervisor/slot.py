"""The place of one worker process under a parent."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from sqla_jobs.supervisor.child import ChildProcess

_HEALTHY = 60.0
"""A child that ran for longer than this ended for a new reason: the delay before its successor starts anew."""
_MAX_BACKOFF = 30.0


class Slot:
    """Held by one child at a time, and taken by its successor."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.child: ChildProcess | None = None
        self.successor: ChildProcess | None = None
        """A child that is starting, and takes over once it is ready."""
        self.start_at: float = 0.0
        """No child is started here before that moment, by `time.monotonic()`."""
        self.is_done = False
        """Whether nothing is left to do here, so that no child is started any more."""
        self._failures = 0

    @property
    def children(self) -> Iterator[ChildProcess]:
        """The child that holds it, and its successor."""
        return (child for child in (self.child, self.successor) if child is not None)

    @property
    def is_vacant(self) -> bool:
        """Whether a child is to be started here now."""
        return self.child is None and not self.is_done and time.monotonic() >= self.start_at

    def succeed(self) -> ChildProcess | None:
        """The successor takes over. Returns the child that held the slot."""
        old, self.child, self.successor = self.child, self.successor, None
        return old

    def hold_back(self, failed: ChildProcess) -> float:
        """Delay the next child, longer after each failure. Returns the seconds."""
        now = time.monotonic()
        is_new = failed.ready_at is not None and now - failed.ready_at > _HEALTHY
        self._failures = 1 if is_new else self._failures + 1
        seconds = 0.0 if self._failures == 1 else min(_MAX_BACKOFF, 0.25 * 2**self._failures)
        seconds *= random.uniform(0.75, 1.25)  # noqa: S311 - so that not all start at once
        self.start_at = now + seconds
        return seconds
