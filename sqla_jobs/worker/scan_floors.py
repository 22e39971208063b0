"""Where claiming begins to look, and when it looks everywhere all the same."""

from __future__ import annotations

import math
from collections.abc import Iterable

from sqla_jobs.queries import EVERYWHERE, PRIORITIES, Claimed

_SHARED = 30.0
"""The longest time in seconds to which other workers can stretch the pause between two sweeps."""


class SweepTimer:
    """When the next sweep is due: a second after the last, or twenty times what a sweep takes, if that is longer.

    A sweep takes the shorter time of the last two: one that the machine held up says nothing about the next.
    """

    def __init__(self) -> None:
        self.at = 0.0
        """By `time.monotonic()`."""
        self._took = math.inf

    def swept(self, began: float, ended: float, *, workers: int = 1) -> None:
        """A sweep went from `began` to `ended`. `workers` share the time for sweeps, up to half a minute each."""
        rest = 20 * min(ended - began, self._took)
        self._took = ended - began
        self.at = ended + max(1.0, rest, min(rest * workers, _SHARED))


class ScanFloors:
    """Where looking for jobs of each priority begins: claiming skips the dead index entries of jobs that were claimed.

    A floor trails the highest claimed position by at least a second. A job whose transaction committed
    late may lie below it: hence a sweep without floors from time to time, as `SweepTimer` says.
    """

    def __init__(self, queues: Iterable[str]) -> None:
        self.workers = 1
        """How many workers serve some of these queues: they share the time for sweeps."""
        self._floor = {queue: [*EVERYWHERE] for queue in queues}
        self._highest = {queue: [*EVERYWHERE] for queue in self._floor}
        self._trailing = {queue: [*EVERYWHERE] for queue in self._floor}
        self._moved_at = 0.0
        self._sweeps = {queue: SweepTimer() for queue in self._floor}

    def of(self, queues: Iterable[str], now: float) -> dict[str, list[int]]:
        """The floors of these queues, without those of queues that are due for a sweep."""
        return {queue: self._floor[queue] for queue in queues if now < self._sweeps[queue].at}

    def swept(self, queues: Iterable[str], began: float, ended: float) -> None:
        """A sweep: a claim from these queues without floors, from `began` to `ended`."""
        for queue in queues:
            self._sweeps[queue].swept(began, ended, workers=self.workers)

    def sweep_at(self, queue: str) -> float:
        """When the next sweep of a queue is due, by `time.monotonic()`."""
        return self._sweeps[queue].at

    def sweep_soon(self) -> None:
        """The next claim from any queue is a sweep."""
        for sweep in self._sweeps.values():
            sweep.at = 0.0

    def claimed(self, jobs: list[Claimed], now: float) -> None:
        """Remember how far claiming has come: `jobs` are in claim order."""
        highest = {(job.queue, job.priority - PRIORITIES.start): job.position for job in jobs}
        lowest = {(job.queue, job.priority - PRIORITIES.start): job.position for job in reversed(jobs)}
        for (queue, level), position in lowest.items():
            if position <= self._floor[queue][level]:  # it came late, and more may have come with it
                self._floor[queue][level] = self._trailing[queue][level] = self._highest[queue][level] = -1
            self._highest[queue][level] = max(self._highest[queue][level], highest[queue, level])
        if now - self._moved_at >= 1.0:
            self._floor, self._trailing = self._trailing, {queue: [*them] for queue, them in self._highest.items()}
            self._moved_at = now
