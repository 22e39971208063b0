"""The places behind limits that ended jobs of this process have freed.

The process fills these places itself, or notifies other workers of them.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence

from sqla_jobs.queries import Claimed
from sqla_jobs.queries.limited import Gates
from sqla_jobs.rules.limits import holds_a_place
from sqla_jobs.worker.claiming import Claiming

_APART = 0.1
"""The shortest time between messages to other workers, in seconds."""
_MOST, _MANY = 1000, 100_000
"""Places of more than `_MOST` gates count as so many that other workers are notified."""


class FreedPlaces:
    """Counts the places that ended jobs have freed, until other jobs take them or other workers are notified.

    A gate that was full has at most as many free places as all workers count together. So if anybody waits for one of
    them, the worker that counts the most notifies the others.
    """

    def __init__(self, claiming: Claiming) -> None:
        self._engine = claiming.shared.claims
        self._queries = claiming.shared.queries
        self._channel = claiming.shared.models.channel
        self._ended = deque[tuple[Gates, str]]()
        """The gates of each ended job, and its queue if the queue itself is limited."""
        self._left = Counter[str]()
        """By gate, the number of freed places that no job in this process has taken."""
        self._full = set[Gates]()
        """Groups that a claim in this process has filled."""
        self._rests_until = -math.inf
        """When other workers may be notified again, by `time.monotonic()`."""

    def add(self, gates: Gates, queue: str) -> bool:
        """Count the places of an ended job, behind its gates and in its queue. `queue` is "" if the queue is unlimited.

        Return whether the job held any place. Any thread may call this.
        """
        has_places = bool(queue) or any(map(holds_a_place, gates))
        if has_places:
            self._ended.append((gates, queue))
        return has_places

    def take(self) -> Counter[Gates]:
        """Return the groups that were full, each with the number of its jobs that have ended since the last call."""
        hints = Counter[Gates]()
        for _ in range(len(self._ended)):
            gates, queue = self._ended.popleft()
            self._left.update(filter(holds_a_place, gates))
            if gates in self._full:
                hints[gates] += 1
            if queue:
                self._left[f"@{queue}"] += 1
        self._full.difference_update(hints)
        return hints

    def refilled(self, jobs: Sequence[Claimed], free: Mapping[Gates, int | None]) -> None:
        """Count the places that these jobs have taken.

        `free` maps each group to the number of places that were free before; `None` means no limit.
        """
        for gates, number in Counter(job.gates for job in jobs).items():
            before = free.get(gates)
            if before is not None and before <= number:
                self._full.add(gates)
        if self._left:
            for job in jobs:
                self._left.subtract(gate for gate in (*job.gates, f"@{job.queue}") if gate in self._left)
            for gate in [gate for gate, number in self._left.items() if number <= 0]:
                del self._left[gate]

    @property
    def notify_at(self) -> float:
        """When to look whether to notify other workers, by `time.monotonic()`; infinite if no freed place is left."""
        return self._rests_until if self._left else math.inf

    def notify_if_due(self) -> None:
        self.take()
        if time.monotonic() >= self.notify_at:
            self.notify()

    def notify(self) -> None:
        """Notify other workers of free places if necessary: they may serve other queues or tasks."""
        if not self._left:
            return
        if len(self._left) > _MOST:
            self._left.update(dict.fromkeys(self._left, _MANY))
        began = time.monotonic()
        with self._engine.begin() as connection:
            for gate in self._queries.tell_others(connection, self._channel, self._left):
                del self._left[gate]
        ended = time.monotonic()
        self._rests_until = ended + max(_APART, 20 * (ended - began))
