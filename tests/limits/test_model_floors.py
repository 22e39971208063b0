"""All that can happen to claims that begin at floors, up to a bound; and that each guard of the floors is needed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sqla_jobs.queries.limited import Look
from sqla_jobs.worker.floors import GateFloors
from tests.limits.model_floors import World

pytestmark = pytest.mark.slow

URGENT = World(queued=3, kinds=frozenset({"urgent"}), others=0)
GROUPS = World(groups=(0, 1, 1), queued=3, kinds=frozenset({"urgent"}), others=0, again=0)
GATES = World(queued=3, lacking_gates=1, kinds=frozenset({"gate"}), others=0, again=0)
LATE = World(groups=(0, 0, 0, 0), opened=1, queued=2, is_ordered=True, faults=0, others=0, sweeps=False)
RETRIED = World(queued=2, is_ordered=True, faults=0, others=0, again=2, sweeps=False)
ORDER_GIVEN = World(queued=3, lacking_gates=1, is_ordered=True, kinds=frozenset({"gate"}), others=0, again=0)
NO_ANSWER = World(groups=(0, 0), queued=1, kinds=frozenset({"no answer"}), stops=True, again=0)
CRASH = World(limit=2, queued=1, unflushed=1, kinds=frozenset({"unseen"}), again=0, sweeps=False, overlaps=False)
FAILOVER = World(groups=(0, 0), queued=1, is_ordered=True, kinds=frozenset({"failover"}), again=0)


@pytest.mark.parametrize("world", [URGENT, GROUPS, GATES, LATE, RETRIED, ORDER_GIVEN, NO_ANSWER, CRASH, FAILOVER])
def test_no_interleaving_overshoots_passes_over_or_misses_a_job(world: World) -> None:
    found = world.explored()
    assert found.broken is None, found.steps
    assert found.states > 1000, "this is no exploration"


class SkipsFloorsForOneLook(GateFloors):
    """A sweep leaves out the floors of its own look, and the next one begins at them again."""

    def _sweep(self) -> None:
        self._gates = {}


class KeepsFloorsOfGates(GateFloors):
    def _sweep(self) -> None:
        gates = self._gates
        super()._sweep()
        self._gates = gates


class LearnsWhatIsNotOnDisk(GateFloors):
    def learn(self, look: Look, began: float, ended: float) -> None:
        super().learn(look, began, ended)
        self._raise_gates(look)


class RisesUnseen(GateFloors):
    """A floor is where no job can be inserted below any more, whatever was inserted since it was passed."""

    def learn(self, look: Look, began: float, ended: float) -> None:
        super().learn(look, began, ended)
        for order, passed in self._orders.passed.items():
            self._orders.floors[order] = passed.place if passed.ended_at <= look.oldest else passed.settled


@pytest.mark.parametrize(
    ("world", "broken"),
    [
        (replace(URGENT, sweeps=False), "stuck"),
        (replace(URGENT, floors=SkipsFloorsForOneLook), "passed over since the last sweep"),
        (replace(GROUPS, floors=SkipsFloorsForOneLook), "passed over since the last sweep"),
        (replace(GATES, floors=KeepsFloorsOfGates), "overshoot"),
        (replace(LATE, waits=False), "out of order"),
        (replace(LATE, knows_open_ones=False), "out of order"),
        (replace(LATE, floors=RisesUnseen), "out of order"),
        (replace(RETRIED, tells_begun=False), "out of order"),
        (replace(CRASH, floors=LearnsWhatIsNotOnDisk), "overshoot"),
        (replace(FAILOVER, forgets=False), "out of order"),
    ],
)
def test_each_guard_is_needed(world: World, broken: str) -> None:
    assert world.explored().broken == broken
