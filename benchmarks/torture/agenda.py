"""Planned actions. The thread that calls `run_due` executes them."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable

Action = Callable[[], object]


class Agenda:
    """Actions and their times, in seconds since `begin()`."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._planned: list[tuple[float, int, Action]] = []
        self._numbers = itertools.count()

    def begin(self) -> None:
        self._began = time.monotonic()

    @property
    def now(self) -> float:
        return time.monotonic() - self._began

    def at(self, seconds: float, action: Action) -> None:
        heapq.heappush(self._planned, (seconds, next(self._numbers), action))

    def run_due(self) -> None:
        """Execute all actions that are due, in order."""
        while self._planned and self._planned[0][0] <= self.now:
            heapq.heappop(self._planned)[2]()
