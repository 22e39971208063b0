"""The scan floors, above which claims look for jobs, and the sweeps, which look below the floors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

from sqla_jobs.calls.values import EVERYWHERE, PRIORITIES, Claimed, names
from sqla_jobs.queries.limited import NOWHERE, Floors, Look
from sqla_jobs.rules.limits import ordered_gate

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
                self._floor[queue][level] = self._trailing[queue][level] = self._highest[queue][level] = -1
            self._highest[queue][level] = max(self._highest[queue][level], highest[queue, level])
        if now - self._moved_at >= 1.0:
            self._floor, self._trailing = self._trailing, {queue: [*them] for queue, them in self._highest.items()}
            self._moved_at = now


_HOT = 200
"""A group gets floors after this many claimed jobs."""
_MOST = 16
"""The maximum number of groups that have floors: each step of a look compares all these groups."""
_FORGOTTEN = 10_000
"""If more than this many groups are counted, counting starts over."""


Place = TypeVar("Place", int, tuple[int, int])


class GateFloors:
    """The floors of one queue's groups. Claims start at the floors.

    Floors help while an old snapshot is held: the index then keeps an entry for each job that has run.

    A group's floor is the index position of a claimed job. The floor applies only once no open transaction can have
    inserted a job below it, and a later look has found no such job. Even then, a job that is given a gate or a more
    urgent priority may lie below the floor. So sweeps remove all floors, at times that `SweepTimer` sets.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._sweeps = SweepTimer()
        self.forget()

    def forget(self) -> None:
        """Forget all floors after an error: a new primary may lack the latest commits and reuse run ids."""
        self._groups = _Rising((PRIORITIES.start - 1, 0))
        self._orders = _Rising(0)
        self._gates: dict[str, int] = {}

    @property
    def sweep_at(self) -> float:
        """When the next sweep is due, by `time.monotonic()`. It is infinite while there are no floors."""
        return self._sweeps.at if self._groups.floors else math.inf

    def of(self, now: float) -> Floors:
        """Return the floors for a look that begins now."""
        return NOWHERE if now >= self._sweeps.at else Floors(self._groups.floors, self._orders.floors, self._gates)

    def learn(self, look: Look, began: float, ended: float) -> None:
        """Raise the floors according to a look. The claims of this look are already on disk."""
        if began >= self._sweeps.at:
            self._sweeps.swept(began, ended)
            self._sweep()
        for job in look.claimed:
            self._count(job, look)
        if look.claimed:  # otherwise nothing was flushed, and run ids may be reused after a crash
            self._raise_gates(look)

    def _sweep(self) -> None:
        self._groups.sweep()
        self._orders.sweep()
        self._gates = {}  # running jobs may have been given a gate in the meantime

    def _raise_gates(self, look: Look) -> None:
        # only for these gates: a claim proves nothing about other gates' running jobs
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
        if order is not None and job.job_id not in look.begun:  # a job that has begun overtakes waiting ones
            self._orders.claimed(order, job.position, look)


class _Passed(NamedTuple, Generic[Place]):
    place: Place
    ended_at: int
    """A transaction id: once all transactions before it have ended, no job can be inserted below `place`."""
    settled: Place
    """The place below which no job can be inserted any more."""


class _Rising(Generic[Place]):
    """Floors that rise with the claims, for groups or for ordered keys."""

    def __init__(self, ground: Place) -> None:
        self._ground: Place = ground
        self.floors: dict[str, Place] = {}
        self.passed: dict[str, _Passed[Place]] = {}

    def sweep(self) -> None:
        """Remove all floors. The next claim from a key sets its floor again, no higher than the claimed job."""
        self.passed = {key: self.passed[key] for key in self.floors}
        self.floors = {}

    def claimed(self, key: str, place: Place, look: Look) -> None:
        """Record a claim at `place`.

        Claims start at the floor: a job that was committed late is claimed before the floor passes it.
        """
        passed = self.passed.get(key, _Passed(self._ground, 0, self._ground))
        if passed.ended_at <= look.oldest:
            passed = self.passed[key] = _Passed(place, look.own_id, max(passed.place, passed.settled))
        self.floors[key] = min(passed.settled, place)
