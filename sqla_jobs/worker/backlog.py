"""The backlog of one queue in a worker: its slots and claimed jobs, and the number of jobs to claim."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from sqla_jobs.execution.held_job import Attempt

if TYPE_CHECKING:
    from sqla_jobs.worker.lane import Lane

MAX_PREFETCH = 2000
"""The maximum number of jobs that are claimed before slots are free for them."""
_BATCH = 1000
"""The maximum number of jobs in one claim."""
_AHEAD = 0.1
"""Jobs are claimed before slots are free: as many as the queue recently ran in this many seconds."""
_SOON = 0.01
"""The counterpart of `_AHEAD` for jobs behind gates."""
_STALLED = 0.5
"""Jobs claimed ahead are given back if no slot takes a job for this many seconds."""
_SHORT = 1.0
"""After a thread could not be started, all slots count as occupied for this many seconds."""


class Backlog:
    """One queue's jobs in this process. A claimer fills the backlog, and each of `concurrency` slots runs one job.

    `begin` is called with each new job for which a slot is free. When a slot's job has ended, `next` returns the slot's
    next job, and wakes the loops of lanes that do not rest.
    """

    plain: Lane
    behind_gates: Lane
    """The lanes that fill this backlog, one of each source."""

    def __init__(self, name: str, concurrency: int) -> None:
        self.name = name
        self.concurrency = concurrency
        self.begin: Callable[[Attempt], None] = _nowhere
        """Runs a job in a free slot."""
        self._first: deque[Attempt] = deque()
        """Jobs that hold a place behind a gate. These jobs run before all others."""
        self._ahead: deque[Attempt] = deque()
        """Jobs that were claimed before a slot was free for them."""
        self._left: deque[Attempt] = deque()
        """Jobs that were waiting here when the backlog was closed, or that arrived later."""
        self._lock = threading.Lock()
        self._is_open = True
        self._running: int = 0
        self.free_at: float = 0.0
        """When slots without jobs are free again after a thread could not be started, by `time.monotonic()`."""
        self._taken_in = 0
        """The number of jobs that have arrived and have not been given back."""
        self._measured = (time.monotonic(), 0)
        self._prefetch_some(0)
        self._moved_at = time.monotonic()
        """When a job last entered or left the backlog."""

    def _prefetch_some(self, jobs: int) -> None:
        self._prefetch = jobs
        wanted = self.concurrency + jobs
        self._few = max(self.concurrency - 1, wanted - -(-min(wanted, _BATCH) // 2))
        """While at most this many jobs are outstanding, claim more: a slot is free, or half a batch fits."""

    @property
    def _occupied(self) -> int:
        """The number of slots that are not free."""
        return self.concurrency if time.monotonic() < self.free_at else self._running

    @property
    def _outstanding(self) -> int:
        """The number of slots that are not free or soon will not be: for each job claimed ahead, one more."""
        return self._occupied + len(self._ahead) + len(self._first)

    def room(self, now: float) -> int:
        """Return how many jobs to claim: 0 if no slot is free and the batch would be small."""
        self._measure(now)
        outstanding = self._outstanding
        return min(self.concurrency + self._prefetch - outstanding, _BATCH) if outstanding <= self._few else 0

    @property
    def has_free_slot(self) -> bool:
        """True if a slot is waiting for a job."""
        return self._outstanding < self.concurrency

    @property
    def busy(self) -> int:
        """The number of slots that have a job or are about to ask for their next one."""
        return self._running

    def room_behind_gates(self, now: float) -> int:
        """Return how many jobs behind gates to claim, for slots that are free or will soon be at the recent rate."""
        self._measure(now)
        soon = min(self.concurrency, int(self._prefetch * _SOON / _AHEAD))
        return max(0, max(self.concurrency - self._outstanding, soon) - len(self._first))

    def fill(self, jobs: list[Attempt]) -> None:
        """Take claimed jobs, and begin those for which slots are free."""
        self._fill(self._ahead, jobs)

    def fill_first(self, jobs: list[Attempt]) -> None:
        """Take jobs that hold places behind gates. If slots are free, begin these jobs before all others."""
        self._fill(self._first, jobs)

    def _fill(self, part: deque[Attempt], jobs: list[Attempt]) -> None:
        with self._lock:
            (part if self._is_open else self._left).extend(jobs)
            self._taken_in += len(jobs)
            self._moved_at = time.monotonic()
            begun: list[Attempt] = []
            while self._occupied < self.concurrency and (attempt := self._pop()) is not None:
                self._running += 1
                begun.append(attempt)
        for attempt in begun:
            self.begin(attempt)

    def put_back(self, attempt: Attempt) -> None:
        """Take back a job for whose slot no thread could be started. The next slot runs it, unless it stalls."""
        with self._lock:
            self._running -= 1
            (self._first if self._is_open else self._left).append(attempt)
        self.free_at = time.monotonic() + _SHORT
        for lane in (self.plain, self.behind_gates):
            lane.wake()  # no job ends that would wake it when the slot is free again

    def _pop(self) -> Attempt | None:
        try:
            attempt = self._first.popleft() if self._first else self._ahead.popleft()
        except IndexError:  # the backlog is empty, or another slot took the job first
            return self._pop() if self._ahead else None
        self._moved_at = time.monotonic()
        return attempt

    def next(self) -> Attempt | None:
        """Return the next job for a slot whose job has ended. `None` means that the slot is now free."""
        attempt: Attempt | None
        try:  # without the lock, since many slots ask for a job simultaneously
            attempt = self._first.popleft() if self._first else self._ahead.popleft()
            self._moved_at = time.monotonic()
        except IndexError:
            attempt = self._pop_or_free()
        now, lane = time.monotonic(), self.behind_gates  # `Lane.rests` as such would be two calls more for each job
        if lane.exhausted is not lane.token or now >= lane.until:
            lane.wake()
        lane = self.plain
        if self._running + len(self._ahead) + len(self._first) <= self._few and (
            lane.exhausted is not lane.token or now >= lane.until
        ):
            lane.wake()
        return attempt

    def _pop_or_free(self) -> Attempt | None:
        with self._lock:  # a job that arrives now is either seen here or finds the slot free
            if (attempt := self._pop()) is None:
                self._running -= 1
        return attempt

    def _measure(self, now: float) -> None:
        """Set how many jobs to claim ahead: a tenth of a second's work, or half the previous number if that is more."""
        since, done = self._measured
        if now - since >= _AHEAD / 10:
            done_now = self._taken_in - self._running - len(self._ahead) - len(self._first)
            rate = (done_now - done) / (now - since)
            self._prefetch_some(min(MAX_PREFETCH, max(int(rate * _AHEAD), self._prefetch // 2)))
            self._measured = (now, done_now)

    def give_back(self) -> list[Attempt]:
        """Remove and return the claimed jobs that no slot has taken."""
        given = [*_emptied(self._first), *_emptied(self._ahead), *_emptied(self._left)]
        with self._lock:
            self._taken_in -= len(given)
        return given

    @property
    def stalls_at(self) -> float:
        """When jobs claimed ahead count as stalled, unless a slot takes one before then."""
        return self._moved_at + _STALLED if self._ahead or self._first else math.inf

    def stalled(self, now: float) -> list[Attempt]:
        """Remove and return jobs claimed ahead that have stalled behind long-running ones.

        Other workers can run these jobs.
        """
        if now < self.stalls_at:
            return []
        self._prefetch_some(0)
        return self.give_back()

    def close(self) -> None:
        """Begin no more jobs from now on. Jobs that arrive later are given back."""
        with self._lock:
            self._is_open = False
            self._left.extend([*_emptied(self._first), *_emptied(self._ahead)])


def _emptied(jobs: deque[Attempt]) -> Iterator[Attempt]:
    with suppress(IndexError):
        while True:
            yield jobs.popleft()


def _nowhere(attempt: Attempt) -> None:
    raise AssertionError(f"job {attempt.job.job_id} came before the slots")
