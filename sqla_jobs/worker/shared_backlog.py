"""The backlogs of one queue in several databases, which share the queue's slots."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sqla_jobs.execution.attempt import Attempt
from sqla_jobs.worker.backlog import Backlog


class SharedSlots:
    """The slots of one queue, for all databases of a worker."""

    def __init__(self) -> None:
        self.lock: threading.Lock = threading.Lock()
        self.backlogs: list[SharedBacklog] = []
        self.ended: int = 0
        """The number of jobs that have ended in these slots."""


class SharedBacklog(Backlog):
    """One queue's jobs of one database. The queue's slots are shared with the backlogs of the other databases.

    A slot that becomes free goes to the database that has the fewest running jobs, among those with claimed jobs. A
    database that has fewer running jobs than another one claims one job ahead, to have it when a slot becomes free.
    """

    def __init__(self, name: str, concurrency: int, slots: SharedSlots) -> None:
        super().__init__(name, concurrency)
        self._slots = slots
        self._lock = slots.lock
        self._served_at = 0.0
        """When a slot was last given to this database, by `time.monotonic()`."""
        self._stalled_at = -1
        """The number of jobs that had ended when jobs claimed ahead last stalled."""

    def serve(self, begin: Callable[[Attempt], None]) -> None:
        super().serve(begin)
        with self._lock:
            self._slots.backlogs = [*self._slots.backlogs, self]

    @property
    def _occupied(self) -> int:
        return max(super()._occupied, sum(one._running for one in self._slots.backlogs))

    def room(self, now: float) -> int:
        return max(super().room(now), self._turn)

    def room_behind_gates(self, now: float) -> int:
        return max(super().room_behind_gates(now), self._turn)

    @property
    def _turn(self) -> int:
        """1 if a job is to be claimed for the next slot that becomes free: another database has more than its share.

        After such a job has stalled, this is 0 until a slot has become free.
        """
        if self._ahead or self._first or self._stalled_at == self._slots.ended:
            return 0
        return int(any(self._running < one._running for one in self._slots.backlogs))

    def stalled(self, now: float) -> list[Attempt]:
        if given := super().stalled(now):
            self._stalled_at = self._slots.ended
        return given

    def next(self) -> Attempt | None:
        with self._lock:
            self._running -= 1
            self._slots.ended += 1
            waiting = [one for one in self._slots.backlogs if one._ahead or one._first]
            heir, attempt = self, None
            for one in sorted(waiting, key=SharedBacklog._order):
                if (attempt := one._pop()) is not None:
                    one._running += 1
                    heir = one
                    break
        now = time.monotonic()
        for one in sorted(self._slots.backlogs, key=SharedBacklog._order):  # if a slot is free, the first claim has it
            one.wake(now)
        if heir is self or attempt is None:
            return attempt
        heir.begin(attempt)
        return None

    def _order(self) -> tuple[int, float]:
        return self._running, self._served_at

    def _pop(self) -> Attempt | None:
        if (attempt := super()._pop()) is not None:
            self._served_at = time.monotonic()
        return attempt

    def wake(self, now: float) -> None:
        """Wake the loops of lanes that do not rest, if they may claim."""
        if not self.behind_gates.rests(now):
            self.behind_gates.wake()
        if (self._outstanding <= self._few or self._turn) and not self.plain.rests(now):
            self.plain.wake()
