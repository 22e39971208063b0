"""Where claims behind gates begin to look: past the dead index entries of jobs that went through before."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from sqla_jobs.calls.values import Claimed, names
from sqla_jobs.queries.limited import NOWHERE, Floors, Look
from sqla_jobs.rules.limits import ordered_gate

_HOT = 200
"""A group has floors once this many jobs of it were claimed here."""
_MOST = 16
"""At most so many groups have floors: each step of a look compares all of them."""
_FORGOTTEN = 10_000
"""Counting starts anew after so many groups."""


class _Passed(NamedTuple):
    group: str
    place: tuple[int, int]
    order: str | None
    ended_at: int
    """A transaction id. Once all before it have ended, no insert can put a job below the place."""


class GateFloors:
    """The floors of one queue. Under a long-lived snapshot the index keeps an entry for each job that has run.

    A floor of a group is the place of the last job claimed, known to be passed once no transaction is left that may
    have inserted a job below it. One that was given a more urgent priority lies below all the same: hence a sweep
    without floors every second, or every twenty times what the last sweep took.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._recent: set[str] = set()
        """Groups of which a job was claimed here since the last sweep; the others lose their floors."""
        self._passed: list[_Passed] = []
        self._sweep_at = 0.0
        self.forget()

    def forget(self) -> None:
        """After an error: the server may have crashed, and give out run ids again."""
        self._groups: dict[str, tuple[int, int]] = {}
        self._orders: dict[str, int] = {}
        self._gates: dict[str, int] = {}
        self._passed.clear()

    def of(self, now: float) -> Floors:
        """The floors for a look that begins now."""
        return NOWHERE if now >= self._sweep_at else Floors(self._groups, self._orders, self._gates)

    def learn(self, look: Look, began: float, ended: float) -> None:
        """Raise the floors by what a look has found."""
        if began >= self._sweep_at:
            self._sweep_at = ended + max(1.0, 20 * (ended - began))
            self._gates = dict.fromkeys(self._gates, 0)  # what runs may have been given a gate meanwhile
            self._groups = {group: place for group, place in self._groups.items() if group in self._recent}
            self._recent.clear()
        self._raise(look.oldest)
        for job in look.claimed:
            self._count(job, look.newest)
        # of no other gate: what a look claimed says nothing of what has run there for longer
        for gate, lowest in look.lowest.items():
            running = [job.run_id for job in look.claimed if gate in job.gates]
            running += [lowest] if lowest else []
            if gate in self._gates and running:
                self._gates[gate] = max(self._gates[gate], min(running) - 1)

    def _raise(self, oldest: int) -> None:
        while self._passed and self._passed[0].ended_at <= oldest:
            passed = self._passed.pop(0)
            self._groups[passed.group] = passed.place
            if passed.order is not None:
                self._orders[passed.order] = passed.place[1]

    def _count(self, job: Claimed, newest: int) -> None:
        group = names(job.gates)
        self._recent.add(group)
        self._counts[group] += 1
        if len(self._counts) > _FORGOTTEN:
            self._counts.clear()
        if group not in self._groups and (self._counts[group] < _HOT or len(self._groups) >= _MOST):
            return
        self._groups.setdefault(group, (job.priority, 0))
        for gate in job.gates:
            self._gates.setdefault(gate, 0)
        self._passed.append(_Passed(group, (job.priority, job.position), ordered_gate(job.gates), newest))
