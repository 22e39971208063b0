"""Counters and histograms of a process that claims and runs jobs."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from sqla_jobs.queries.values import RunEnd
from sqla_jobs.rules.outcomes import RunOutcome

BUCKETS = (0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0)
"""Upper bounds of the histogram buckets, in seconds. One more bucket counts longer times."""
Origin = tuple[str, str]
"""The task and the queue of a run."""
Histogram = list[float]
"""The counts of the buckets, followed by the sum of all seconds."""


@dataclass(slots=True)
class Totals:
    """Totals since the process started. No number ever decreases."""

    claims: int = 0
    """Claims that returned at least one job."""
    claimed: int = 0
    heartbeats: int = 0
    """Heartbeats that were stored."""
    waits: dict[Origin, Histogram] = field(default_factory=dict[Origin, Histogram])
    """For each task and queue, a histogram of the seconds between a job's due time and the start of its run."""
    runs: dict[Origin, Histogram] = field(default_factory=dict[Origin, Histogram])
    """For each task and queue, a histogram of the seconds between the start and the end of a run."""
    ends: dict[tuple[Origin, str], int] = field(default_factory=dict[tuple[Origin, str], int])
    """The number of ended runs, by task and queue, and by outcome."""
    tasks: set[Origin] = field(default_factory=set[Origin])
    """The tasks that workers serve, with the queues that they are declared for, even those that have never run."""

    @classmethod
    def of(cls, parts: Iterable[Totals]) -> Totals:
        """Return the sum of `parts`. The sum shares no data with the parts."""
        found = cls()
        for part in parts:
            add(found, part)
        return found


def add(totals: Totals, more: Totals) -> None:
    """Add `more` to `totals`, which then share no data."""
    totals.claims += more.claims
    totals.claimed += more.claimed
    totals.heartbeats += more.heartbeats
    totals.tasks |= more.tasks
    for mine, theirs in ((totals.waits, more.waits), (totals.runs, more.runs)):
        for origin, histogram in theirs.items():
            mine[origin] = [*map(sum, zip(mine.get(origin, EMPTY), histogram, strict=True))]
    for key, number in more.ends.items():
        totals.ends[key] = totals.ends.get(key, 0) + number


EMPTY: Histogram = [0] * (len(BUCKETS) + 2)


class Counters:
    """Counts events from several threads while `is_wanted` is set. Otherwise, calls cost next to nothing."""

    def __init__(self) -> None:
        self.is_wanted = False
        """True if something reads the totals."""
        self._totals = Totals()
        self._begun = deque[tuple[Origin, float]]()
        """Started runs that are not counted yet: a thread that starts a run must not wait for a lock."""
        self._lock = threading.Lock()

    def serves(self, tasks: Iterable[Origin]) -> None:
        """Record that a worker serves these tasks, which are declared for these queues."""
        with self._lock:
            self._totals.tasks.update(tasks)

    def claimed(self, number: int) -> None:
        """Count a claim that returned `number` jobs."""
        if self.is_wanted and number:
            with self._lock:
                self._totals.claims += 1
                self._totals.claimed += number

    def beaten(self, number: int = 1) -> None:
        """Count `number` stored heartbeats."""
        if self.is_wanted:
            with self._lock:
                self._totals.heartbeats += number

    def begun(self, task: str, queue: str, waited: float) -> None:
        """Count a run that starts `waited` seconds after its job was due."""
        if self.is_wanted:
            self._begun.append(((task, queue), waited))

    def ended(self, ends: Iterable[RunEnd]) -> None:
        """Count ended attempts, except those that were given back."""
        if not self.is_wanted:
            return
        with self._lock:
            self._count_begun()
            totals = self._totals
            for end in ends:
                lease, outcome = end.lease, end.outcome.kind
                if outcome != "released":
                    origin = lease.task, lease.queue
                    totals.ends[origin, outcome] = totals.ends.get((origin, outcome), 0) + 1
                    _observe(totals.runs, origin, end.finished - end.started)

    def lost(self, origins: Iterable[Origin]) -> None:
        """Count jobs that were rescued from dead processes. The run times of these jobs are unknown."""
        if self.is_wanted:
            with self._lock:
                for origin in origins:
                    key = (origin, RunOutcome.lost)
                    self._totals.ends[key] = self._totals.ends.get(key, 0) + 1

    def take_over(self, totals: Totals) -> None:
        """Add the counts of another process, which has ended."""
        with self._lock:
            add(self._totals, totals)

    def totals(self) -> Totals:
        """Return a copy of the totals so far."""
        with self._lock:
            self._count_begun()
            return Totals.of([self._totals])

    def _count_begun(self) -> None:
        with suppress(IndexError):
            while True:
                _observe(self._totals.waits, *self._begun.popleft())


def _observe(histograms: dict[Origin, Histogram], origin: Origin, seconds: float) -> None:
    histogram = histograms.get(origin)
    if histogram is None:
        histogram = histograms[origin] = EMPTY.copy()
    seconds = max(0.0, seconds)
    histogram[bisect_left(BUCKETS, seconds)] += 1
    histogram[-1] += seconds
