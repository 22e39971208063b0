"""The plan of the faults and their times. Only a seed determines it."""

from __future__ import annotations

import random
from dataclasses import dataclass

KINDS = {
    "kill": 4,
    "freeze": 3,
    "backends": 3,
    "cut": 2,
    "commits": 2,
    "claims": 2,
    "stall": 2,
    "partition": 2,
    "terminate": 1,
    "hang": 1,
    "clock": 1,
    "crash": 1,
    "restart": 1,
}
"""All kinds of faults, with their weights."""
_MINUTE = 60.0
_EVERY = 2.5
"""The average number of seconds between two faults."""


@dataclass(frozen=True, order=True)
class Planned:
    """A fault that begins `at` seconds after the start of the load."""

    at: float
    kind: str


def plan(rng: random.Random, seconds: float, *, begin: float = 3.0) -> list[Planned]:
    """Plan faults between `begin` and `seconds`, in order. Each kind occurs at least once in every minute."""
    faults: list[Planned] = []
    start = begin
    while start < seconds:
        end = seconds if seconds - start < 1.5 * _MINUTE else start + _MINUTE
        count = max(len(KINDS), int((end - start) / _EVERY))
        kinds = [*KINDS, *rng.choices([*KINDS], [*KINDS.values()], k=count - len(KINDS))]
        rng.shuffle(kinds)
        apart = (end - start) / count
        faults += [Planned(start + (k + rng.random()) * apart, kind) for k, kind in enumerate(kinds)]
        start = end
    return sorted(faults)
