"""Claims from behind gates in one queue. Each claim goes on where the last one ended."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

from sqla_jobs.queries import Among, Claimed
from sqla_jobs.queries.limited import Gates
from sqla_jobs.worker.claiming import Claiming
from sqla_jobs.worker.gate_floors import GateFloors
from sqla_jobs.worker.gating import Gating

_Claim = Callable[[Among], list[Claimed]]


class GroupWalk:
    """Goes round the groups of a queue, the jobs with the same gates. One thread at a time uses it."""

    def __init__(self, claiming: Claiming, gating: Gating, tasks: Sequence[str], queue: str) -> None:
        self._engine = claiming.engine
        self._queries = claiming.shared.queries
        self._set_aside = claiming.shared.set_aside
        self._liveness = claiming.liveness
        self._gating = gating
        self._tasks = tasks
        self._queue = queue
        self._cursor = "{}"
        self._floors = GateFloors()
        self._is_plain_first = False
        self.free: Mapping[Gates, int | None] = {}
        """How many jobs of a group could start before the last claim, of groups that it took from. None: any number."""
        self.next_at: float = math.inf
        """When a rate that the last claim found used up lets one more start, by `time.monotonic()`."""

    @property
    def is_at_start(self) -> bool:
        """Whether the next claim begins a new round."""
        return self._cursor == "{}"

    @property
    def sweep_at(self) -> float:
        """When the next sweep is due, by `time.monotonic()`. Infinite while no floor hides anything."""
        return self._floors.sweep_at

    def forget(self) -> None:
        """Forget the floors after an error: another server may have taken over."""
        self._floors.forget()

    def claim(self, room: int, hints: Mapping[Gates, int]) -> list[Claimed]:
        """Claim at most `room` jobs, of the groups in `hints` first. A limited queue gives jobs without gates too."""
        left, self.next_at, self.free = room, math.inf, {}
        tasks = [task for task in self._tasks if task not in self._gating.held_up]

        def claim(which: Among) -> list[Claimed]:
            nonlocal left
            claimed: list[Claimed] = []
            for some in self._in_turn([behind_gates, plain]):
                if left:
                    claimed += some(which)
                    left = room - len(claimed)
            return claimed

        def plain(which: Among) -> list[Claimed]:
            with self._engine.connect() as connection:
                return self._queries.claim_limited.from_limited_queue(
                    connection, self._liveness.process_id, self._queue, left, tasks, which
                )

        def behind_gates(which: Among) -> list[Claimed]:
            began = time.monotonic()
            with self._engine.connect() as connection:
                look = self._queries.claim_limited(
                    connection,
                    self._liveness.process_id,
                    self._queue,
                    left,
                    tasks,
                    cursor=self._cursor,
                    hints=hints,
                    floors=self._floors.of(began),
                    among=which,
                )
            self._floors.learn(look, began, time.monotonic())
            self._cursor = look.cursor
            self.free = look.free
            if look.next_in is not None:
                self.next_at = min(self.next_at, time.monotonic() + look.next_in)
            return look.claimed

        def candidates(which: Among) -> list[int]:
            with self._engine.begin() as connection:
                return self._queries.to_claim_limited(connection, self._queue, self._tasks, which)

        return [job for part in self._set_aside.around("its claim", claim, candidates) for job in part]

    def _in_turn(self, claims: list[_Claim]) -> list[_Claim]:
        """Only a limited queue gives jobs without gates here. The two kinds of claims take turns at being first."""
        if self._queue not in self._gating.queues:
            return claims[:1]
        self._is_plain_first = not self._is_plain_first
        return claims[::-1] if self._is_plain_first else claims
