"""One queue inside a worker: its backlog of claimed jobs, how many more it can take, where claiming looks."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from enum import Enum
from queue import Empty, SimpleQueue

from sqla_jobs.execution.attempt import Attempt
from sqla_jobs.queries import EVERYWHERE, PRIORITIES, Claimed

MAX_PREFETCH = 2000
"""Jobs that are claimed ahead at most."""
_BATCH = 1000
"""Jobs that are claimed at once at most."""
_AHEAD = 0.1
"""Seconds' worth of jobs, at the lane's recent rate, that are claimed before a thread is free for them."""
_SHARED = 30.0
"""The longest time in seconds to which other workers can stretch the pause between two sweeps."""
_SOON = 0.01
"""Seconds' worth of jobs that are claimed from behind gates before a thread is free for them."""
_STALLED = 0.5
"""Seconds without a thread taking a job, after which what was claimed ahead is given back."""


class _First(Enum):
    """Stands in the backlog for a job that goes before all others."""

    first = "first"


_FIRST = _First.first


class Backlog:
    """The jobs of one queue in this process. Whoever claims fills it, `concurrency` threads empty it."""

    def __init__(self, name: str, concurrency: int) -> None:
        self.name = name
        self.concurrency = concurrency
        self.empty_until: float = 0.0
        """The queue is not asked for jobs before this moment, unless `wake` is called."""
        self._woken_at = 0.0
        self._backlog: SimpleQueue[Attempt | _First | None] = SimpleQueue()
        self._first: deque[Attempt] = deque()
        """Jobs that hold a place behind a gate; each has a `_FIRST` in the backlog."""
        self.is_wanted: bool = False
        """Whether jobs may wait behind gates for a thread of this lane."""
        self._lock = threading.Lock()
        self._outstanding = 0
        self._done = 0
        self._prefetch = 0
        self._measured = (time.monotonic(), 0)
        self._moved_at = time.monotonic()
        """When a job last came into the backlog or left it."""

    def room(self, now: float) -> int:
        """How many jobs to claim. 0 while the batch would be small and no thread waits for a job."""
        return min(self._free, _BATCH) if now >= self.empty_until else 0

    @property
    def _free(self) -> int:
        wanted = self.concurrency + self._prefetch
        free = wanted - self._outstanding
        return free if free * 2 >= min(wanted, _BATCH) or self.has_idle_thread else 0

    @property
    def has_idle_thread(self) -> bool:
        """Whether a thread waits for a job."""
        return self._outstanding < self.concurrency

    def room_behind_gates(self) -> int:
        """How many jobs to claim from behind gates: for threads that are free, or soon will be at the recent rate."""
        soon = min(self.concurrency, int(self._prefetch * _SOON / _AHEAD))
        room = max(0, max(self.concurrency - self._outstanding, soon) - len(self._first))
        self.is_wanted = room == 0
        return room

    def wake(self) -> None:
        """There may be new jobs."""
        self._woken_at = time.monotonic()
        self.empty_until = 0.0

    def rest(self, until: float, *, since: float) -> None:
        """A look that began at `since` found no more jobs: look again at `until`, or at once if woken since."""
        if self._woken_at < since:
            self.empty_until = until

    def fill(self, jobs: list[Attempt]) -> None:
        """Hand claimed jobs to the threads."""
        with self._lock:
            self._outstanding += len(jobs)
        self._moved_at = time.monotonic()
        for held in jobs:
            self._backlog.put(held)

    def fill_first(self, jobs: list[Attempt]) -> None:
        """Hand over jobs that hold places behind gates: they run before the others."""
        with self._lock:
            self._outstanding += len(jobs)
        self._moved_at = time.monotonic()
        for held in jobs:
            self._first.append(held)
            self._backlog.put(_FIRST)

    def take(self) -> Attempt | None:
        """Wait for the next job of a thread. None tells the thread to end."""
        held = self._next()
        self._moved_at = time.monotonic()
        return held

    def _next(self) -> Attempt | None:
        while True:
            held = self._backlog.get()
            if not self._first:
                if held is not _FIRST:
                    return held
                continue  # another thread has taken the job before its turn
            try:
                first = self._first.popleft()
            except IndexError:  # another thread was faster
                self._backlog.put(held)
                continue
            if held is not _FIRST:
                self._backlog.put(held)
            return first

    def through(self) -> bool:
        """A thread is through with a job. Returns whether it is time to claim more."""
        with self._lock:
            self._outstanding -= 1
            self._done += 1
        return self._free > 0 and time.monotonic() >= self.empty_until

    def measure(self, now: float) -> None:
        """Claim ahead what the threads did of late in a tenth of a second, or half as much as before."""
        since, done = self._measured
        if now - since >= _AHEAD / 10:
            rate = (self._done - done) / (now - since)
            self._prefetch = min(MAX_PREFETCH, max(int(rate * _AHEAD), self._prefetch // 2))
            self._measured = (now, self._done)

    def give_back(self) -> list[Attempt]:
        """Remove and return the claimed jobs that no thread has taken."""
        given: list[Attempt] = []
        with suppress(IndexError):
            while True:
                given.append(self._first.popleft())
        try:
            while (held := self._backlog.get_nowait()) is not None:
                if held is not _FIRST:
                    given.append(held)
            self._backlog.put(None)  # the mark that ends a thread stays
        except Empty:
            pass
        with self._lock:
            self._outstanding -= len(given)
        return given

    @property
    def stalls_at(self) -> float:
        """When the jobs claimed ahead count as held up, unless a thread takes one before."""
        return math.inf if self._backlog.empty() else self._moved_at + _STALLED

    def stalled(self, now: float) -> list[Attempt]:
        """Remove and return the jobs claimed ahead that are held up behind long ones: others may run them."""
        if now < self.stalls_at:
            return []
        self._prefetch = 0
        return self.give_back()

    def close(self) -> None:
        """Let each thread end after the job it has."""
        for _ in range(self.concurrency):
            self._backlog.put(None)


class ScanFloors:
    """Where looking for jobs of each priority begins: claiming skips the dead index entries of jobs that were claimed.

    A floor trails the highest claimed position by at least a second. A job whose transaction committed
    late may lie below it: hence a sweep without floors every second, or every twenty times what the
    last sweep took, if that is longer; times the number of workers, as long as that is half a minute at most.
    """

    def __init__(self, queues: Iterable[str]) -> None:
        self.workers = 1
        """How many workers serve some of these queues: they share the time for sweeps."""
        self._floor = {queue: [*EVERYWHERE] for queue in queues}
        self._highest = {queue: [*EVERYWHERE] for queue in self._floor}
        self._trailing = {queue: [*EVERYWHERE] for queue in self._floor}
        self._moved_at = 0.0
        self._sweep_at = dict.fromkeys(self._floor, 0.0)

    def of(self, queues: Iterable[str], now: float) -> dict[str, list[int]]:
        """The floors of these queues, without those of queues that are due for a sweep."""
        return {queue: self._floor[queue] for queue in queues if now < self._sweep_at[queue]}

    def swept(self, queues: Iterable[str], began: float, ended: float) -> None:
        """A sweep: a claim from these queues without floors, from `began` to `ended`."""
        rest = 20 * (ended - began)
        for queue in queues:
            self._sweep_at[queue] = ended + max(1.0, rest, min(rest * self.workers, _SHARED))

    def sweep_at(self, queue: str) -> float:
        """When the next sweep of a queue is due, by `time.monotonic()`."""
        return self._sweep_at[queue]

    def sweep_soon(self) -> None:
        """The next claim from any queue is a sweep."""
        self._sweep_at = dict.fromkeys(self._sweep_at, 0.0)

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
