"""No job behind limits waits while it may start, a slot is free and nobody looks; and each wake-up is needed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.limits.model_wake_ups import World

pytestmark = pytest.mark.slow

ONE_QUEUE = World(groups=(0, 1))
TWO_QUEUES = World(groups=(0, 1), serves=((0,), (1,)))
NEVER_FULL = World(groups=(0, 0, 1), serves=((0, 1),), limit=9)
RATE = World(groups=(0, 1), serves=((0, 1),), limit=0)


@pytest.mark.parametrize("world", [ONE_QUEUE, TWO_QUEUES, NEVER_FULL, RATE])
def test_whatever_comes_in_which_order_all_jobs_are_started(world: World) -> None:
    found = world.explored()
    assert found.broken is None, found.steps
    assert found.states > 500, "this is no exploration"


@pytest.mark.parametrize(
    "world",
    [
        replace(ONE_QUEUE, tells_of_enqueues=False),
        replace(TWO_QUEUES, notices_ends=False),
        replace(TWO_QUEUES, tells_others=False),
        replace(NEVER_FULL, wakes_for_slots=False, notices_ends=False),
        replace(NEVER_FULL, repeats_rounds=False, notices_ends=False),
        replace(NEVER_FULL, begins_with_news=False),
        replace(RATE, has_timer=False),
        replace(RATE, keeps_its_time=False),
    ],
)
def test_each_wake_up_is_needed(world: World) -> None:
    assert world.explored().broken == "stuck"
