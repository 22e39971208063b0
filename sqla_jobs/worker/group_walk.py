"""Claims jobs behind gates in one queue. Each claim starts at the group where the last claim ended."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

from sqla_jobs.queries import Among, Claimed
from sqla_jobs.queries.limited import Gates
from sqla_jobs.worker.backfill import Backfill
from sqla_jobs.worker.backlog import Backlog
from sqla_jobs.worker.claiming import Claiming
from sqla_jobs.worker.lane import Lane

_Claim = Callable[[Among], list[Claimed]]
_GATHER = 0.003
"""The longest wait for more slots after a claim, in seconds: the limits lock allows about 1,200 claims a second."""


class GroupWalk(Lane):
    """Walks through the groups of a queue. Jobs with the same gates form a group.

    A look is a round through all groups, of one or more claims. Only one thread at a time may use it.
    """

    def __init__(self, claiming: Claiming, backfill: Backfill, tasks: Sequence[str], backlog: Backlog) -> None:
        super().__init__(backlog)
        self.free: Mapping[Gates, int | None] = {}
        """By group, how many jobs could start when the last claim began. None means any number.

        Only the groups from which that claim took jobs are included.
        """
        self._engine = claiming.shared.claims
        self._queries = claiming.shared.queries
        self._set_aside = claiming.shared.set_aside
        self._liveness = claiming.liveness
        self._backfill = backfill
        self._tasks = tasks
        self._queue = backlog.name
        self._cursor = "{}"
        self._is_plain_first = False
        self._small_at = 0.0
        """Before this time, by `time.monotonic()`, the limits lock is not worth taking for only a few jobs."""
        self._rate_at = math.inf
        """When a used-up rate next allows a start, by `time.monotonic()`. Only rates met in this round count."""

    def poll(self) -> None:
        """Request a look at some groups, even during a rest. It begins where the last look ended."""
        self.until: float = 0.0

    def room(self, now: float) -> int:
        """Return how many jobs to claim now.

        Return 0 during a rest. Right after a claim, also return 0 while only a few slots are free.
        """
        if self.rests(now):
            return 0
        room = self.backlog.room_behind_gates(now)
        return 0 if 2 * room < self.backlog.concurrency and now < self._small_at else room

    def next_at(self, now: float) -> float:
        return min(super().next_at(now), self._small_at if now < self._small_at else math.inf)

    def claim(self, room: int, hints: Mapping[Gates, int]) -> list[Claimed]:
        """Claim at most `room` jobs, first from the groups in `hints`.

        If the queue is limited, also claim jobs without gates.
        """
        began = time.monotonic()
        is_poll = self.exhausted is self.token and began < self._rate_at
        if self._cursor == "{}" and not is_poll:
            self.begin()
            self._rate_at = math.inf
        claimed = self._claim(room, hints)
        if claimed:
            self.spoil()
            ended = time.monotonic()
            self._small_at = ended + min(ended - began, _GATHER)
        elif is_poll:
            self.until = self._rate_at
        elif self._cursor == "{}":
            self.rest(self._rate_at)
        return claimed

    def forget(self) -> None:
        """Forget the current round after an error."""
        self.spoil()

    def _claim(self, room: int, hints: Mapping[Gates, int]) -> list[Claimed]:
        left = room
        tasks = [task for task in self._tasks if task not in self._backfill.limits.held_up]

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
            with self._engine.connect() as connection:
                look = self._queries.claim_limited(
                    connection,
                    self._liveness.process_id,
                    self._queue,
                    left,
                    tasks,
                    cursor=self._cursor,
                    hints=hints,
                    among=which,
                )
            self._cursor = look.cursor
            self.free = look.free
            if look.next_in is not None:
                self._rate_at = min(self._rate_at, time.monotonic() + look.next_in)
            return look.claimed

        def candidates(which: Among) -> list[int]:
            with self._engine.begin() as connection:
                return self._queries.to_claim_limited(connection, self._queue, self._tasks, which)

        return [job for part in self._set_aside.around("its claim", claim, candidates) for job in part]

    def _in_turn(self, claims: list[_Claim]) -> list[_Claim]:
        """Return the kinds of claims to try, in order.

        Jobs without gates are claimed here only if the queue is limited. In that case, the order alternates.
        """
        if self._queue not in self._backfill.limits.queues:
            return claims[:1]
        self._is_plain_first = not self._is_plain_first
        return claims[::-1] if self._is_plain_first else claims
