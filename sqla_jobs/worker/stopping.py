"""The wish that a worker stop, from whichever side it comes."""

from __future__ import annotations

import math
import threading
import time

_STEP = 0.2
"""Seconds after which a signal is seen at the latest."""


class StopRequest(threading.Event):
    """Set by `stop()`, or by a signal handler: that one must not take a lock which the interrupted wait holds."""

    is_signalled = False
    grace = math.inf
    """Seconds that running jobs get, where the one who asks allows fewer than the settings."""

    def is_set(self) -> bool:
        return self.is_signalled or super().is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """In steps, since a signal that arrives just before a wait begins does not end it."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        while not self.is_set() and (left := end - time.monotonic()) > 0:
            super().wait(min(left, _STEP))
        return self.is_set()
