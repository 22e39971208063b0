"""Where claiming begins to look, and when it looks everywhere all the same."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

from sqla_jobs.calls.values import EVERYWHERE, PRIORITIES, Claimed, names
from sqla_jobs.queries.limited import NOWHERE, Floors, Look
from sqla_jobs.rules.limits import ordered_gate

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


_HOT = 200
"""A group has floors once this many jobs of it were claimed here."""
_MOST = 16
"""At most so many groups have floors: each step of a look compares all of them."""
_FORGOTTEN = 10_000
"""Counting starts anew after so many groups."""


Place = TypeVar("Place", int, tuple[int, int])


class GateFloors:
    """The floors of one queue. Under a long-lived snapshot the index keeps an entry for each job that has run.

    A floor of a group is the place of a job that was claimed, once no transaction is left that may have inserted a job
    below it, and a look after that has found none. A job that is given a more urgent priority, or a gate, may lie below
    all the same. So a sweep takes all floors away, as often as `SweepTimer` says.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._sweeps = SweepTimer()
        self.forget()

    def forget(self) -> None:
        """After an error: a server that took over may lack the last commits, and give out run ids again."""
        self._groups = _Rising((PRIORITIES.start - 1, 0))
        self._orders = _Rising(0)
        self._gates: dict[str, int] = {}

    @property
    def sweep_at(self) -> float:
        """When the next sweep is due, by `time.monotonic()`. Infinite while no floor hides anything."""
        return self._sweeps.at if self._groups.floors else math.inf

    def of(self, now: float) -> Floors:
        """The floors for a look that begins now."""
        return NOWHERE if now >= self._sweeps.at else Floors(self._groups.floors, self._orders.floors, self._gates)

    def learn(self, look: Look, began: float, ended: float) -> None:
        """Raise the floors by what a look has found. What it claimed is on disk."""
        if began >= self._sweeps.at:
            self._sweeps.swept(began, ended)
            self._sweep()
        for job in look.claimed:
            self._count(job, look)
        if look.claimed:  # else nothing was flushed: a crash may undo what ran, and its run ids are given out again
            self._raise_gates(look)

    def _sweep(self) -> None:
        self._groups.sweep()
        self._orders.sweep()
        self._gates = {}  # what runs may have been given a gate meanwhile

    def _raise_gates(self, look: Look) -> None:
        # of no other gate: what a look claimed says nothing of what has run there for longer
        for gate, lowest in look.lowest.items():
            running = [job.run_id for job in look.claimed if gate in job.gates]
            running += [lowest] if lowest else []
            if gate in self._gates and running:
                self._gates[gate] = max(self._gates[gate], min(running) - 1)

    def _count(self, job: Claimed, look: Look) -> None:
        group = names(job.gates)
        self._counts[group] += 1
        if len(self._counts) > _FORGOTTEN:
            self._counts.clear()
        hot = self._groups.floors
        if group not in hot and (self._counts[group] < _HOT or len(hot) >= _MOST):
            return
        for gate in job.gates:
            self._gates.setdefault(gate, 0)
        self._groups.claimed(group, (job.priority, job.position), look)
        order = ordered_gate(job.gates)
        if order is not None and job.job_id not in look.begun:  # what has begun passes others that wait
            self._orders.claimed(order, job.position, look)


class _Passed(NamedTuple, Generic[Place]):
    place: Place
    ended_at: int
    """Once all transactions before this one have ended, no job can be inserted below the place."""
    settled: Place
    """Below this one none can, already."""


class _Rising(Generic[Place]):
    """Floors that follow what is claimed: of groups, or of ordered keys."""

    def __init__(self, ground: Place) -> None:
        self._ground: Place = ground
        self.floors: dict[str, Place] = {}
        self.passed: dict[str, _Passed[Place]] = {}

    def sweep(self) -> None:
        """Each floor is back once the next job is claimed from there, and not above that one."""
        self.passed = {key: self.passed[key] for key in self.floors}
        self.floors = {}

    def claimed(self, key: str, place: Place, look: Look) -> None:
        """It was the first from above the floor: what was inserted late is claimed before the floor passes it."""
        passed = self.passed.get(key, _Passed(self._ground, 0, self._ground))
        if passed.ended_at <= look.oldest:
            passed = self.passed[key] = _Passed(place, look.newest, max(passed.place, passed.settled))
        self.floors[key] = min(passed.settled, place)
