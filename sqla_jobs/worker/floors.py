"""The scan floors, above which claims look for jobs, and the sweeps, which look below the floors."""

from __future__ import annotations

import math
from collections.abc import Iterable

from sqla_jobs.queries.values import EVERYWHERE, PRIORITIES, Claimed

_SHARED = 30.0
"""The pause between sweeps grows with the number of workers that share them, up to this many seconds."""


class SweepTimer:
    """The time of the next sweep: one second after the last, or twenty times a sweep's duration if that is longer.

    The shorter of the last two durations counts, since the machine may have delayed one of the sweeps.
    """

    def __init__(self) -> None:
        self.at: float = 0.0
        """The time of the next sweep, by `time.monotonic()`."""
        self._took = math.inf

    def swept(self, began: float, ended: float, *, workers: int = 1) -> None:
        """Record a sweep from `began` to `ended`.

        The pause before the next sweep grows with the number of `workers`, up to half a minute.
        """
        rest = 20 * min(ended - began, self._took)
        self._took = ended - began
        self.at = ended + max(1.0, rest, min(rest * workers, _SHARED))


class ScanFloors:
    """Floors for each queue and priority. Claims start above them, to skip the dead index entries of claimed jobs.

    A floor trails the highest claimed position by at least a second. A job whose transaction committed late may lie
    below the floor. So claims sweep without floors from time to time, as `SweepTimer` decides.
    """

    def __init__(self, queues: Iterable[str]) -> None:
        self.workers = 1
        """The number of workers that serve any of these queues and so share the sweeps."""
        self._floor = {queue: [*EVERYWHERE] for queue in queues}
        self._highest = {queue: [*EVERYWHERE] for queue in self._floor}
        self._trailing = {queue: [*EVERYWHERE] for queue in self._floor}
        self._moved_at = 0.0
        self._sweeps = {queue: SweepTimer() for queue in self._floor}

    def of(self, queues: Iterable[str], now: float) -> dict[str, list[int]]:
        """Return the floors of these queues, except queues that are due for a sweep."""
        return {queue: self._floor[queue] for queue in queues if now < self._sweeps[queue].at}

    def swept(self, queues: Iterable[str], began: float, ended: float) -> None:
        """Record a sweep of these queues from `began` to `ended`. A sweep is a claim without floors."""
        for queue in queues:
            self._sweeps[queue].swept(began, ended, workers=self.workers)

    def sweep_at(self, queue: str) -> float:
        """Return when the next sweep of a queue is due, by `time.monotonic()`."""
        return self._sweeps[queue].at

    def sweep_soon(self) -> None:
        """Make the next claim from any queue a sweep."""
        for sweep in self._sweeps.values():
            sweep.at = 0.0

    def claimed(self, jobs: list[Claimed], now: float) -> None:
        """Remember how far claims have advanced. `jobs` are in claim order."""
        highest = {(job.queue, job.priority - PRIORITIES.start): job.position for job in jobs}
        lowest = {(job.queue, job.priority - PRIORITIES.start): job.position for job in reversed(jobs)}
        for (queue, level), position in lowest.items():
            if position <= self._floor[queue][level]:  # the job's commit was late, and other late commits may follow
                self._floor[queue][level] = self._trailing[queue][level] = self._highest[queue][level] = EVERYWHERE[0]
            self._highest[queue][level] = max(self._highest[queue][level], highest[queue, level])
        if now - self._moved_at >= 1.0:
            self._floor, self._trailing = self._trailing, {queue: [*them] for queue, them in self._highest.items()}
            self._moved_at = now
