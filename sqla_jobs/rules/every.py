"""What happens at most once in a period, such as a log line that many jobs may cause."""

from __future__ import annotations

import time


class Every:
    """A period of `seconds`. The first one is over from the start, or after `first_in` seconds."""

    def __init__(self, seconds: float, *, first_in: float = 0.0) -> None:
        self._seconds = seconds
        self._ends_at = time.monotonic() + first_in

    def is_over(self) -> bool:
        """Return whether the period is over. If it is, the next one begins."""
        now = time.monotonic()
        is_over = now >= self._ends_at
        if is_over:
            self._ends_at = now + self._seconds
        return is_over
