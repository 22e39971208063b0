"""Claims jobs behind gates in one queue. Each claim starts at the group where the last claim ended."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import NamedTuple

from sqla_jobs.queries import Among, Claimed
from sqla_jobs.queries.claim_limited import NOTHING_ENDED, Gates
from sqla_jobs.worker.backfill import Backfill
from sqla_jobs.worker.backlog import Backlog
from sqla_jobs.worker.lane import Lane
from sqla_jobs.worker.services import WorkerServices

_Claim = Callable[[Among], list[Claimed]]
_HINTS = 100
"""The maximum number of ended jobs whose groups the next claim looks at first."""
_GATHER = 0.003
"""The longest wait for more slots after a claim, in seconds: the limits lock allows about 1,200 claims a second."""


class _Round(NamedTuple):
    """How far a round through all groups has come."""

    cursor: str = "{}"
    """Where the round continues. "{}" before its first and after its last group."""
    rate_at: float = math.inf
    """When a used-up rate next allows a start, by `time.monotonic()`. Only rates met in this round count."""
    has_full: bool = False
    """True if the last claim has met a full group, so that the ends of its jobs are hints."""


class GroupWalk(Lane):
    """Walks through the groups of a queue. Jobs with the same gates form a group.

    A look is a round through all groups, of one or more claims. Only one thread at a time may claim.
    """

    def __init__(self, services: WorkerServices, backfill: Backfill, tasks: Sequence[str], backlog: Backlog) -> None:
        super().__init__(backlog)
        self._engine = services.claims
        self._queries = services.queries
        self._set_aside = services.set_aside
        self._liveness = services.liveness
        self._backfill = backfill
        self._tasks = tasks
        self._queue = backlog.name
        self.ended: deque[Gates] = deque(maxlen=_HINTS)
        """The groups of jobs that have ended since the last claim."""
        self._round = _Round()
        self._is_plain_first = cycle((True, False))
        self._small_at = 0.0
        """Before this time, by `time.monotonic()`, the limits lock is not worth taking for only a few jobs."""

    def poll(self) -> None:
        """Request a look at some groups, even during a rest. It begins where the last look ended."""
        self.look_at(0.0)

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

    def claim(self, room: int) -> list[Claimed]:
        """Claim at most `room` jobs, first from full groups of which jobs have ended.

        If the queue is limited, also claim jobs without gates.
        """
        began = time.monotonic()
        is_poll = self.exhausted is self.token and began < self._round.rate_at
        if self._round.cursor == "{}" and not is_poll:
            self.begin()
            self._round = _Round(has_full=self._round.has_full)
        claimed = self._claim(room)
        if claimed:
            self.spoil()
            ended = time.monotonic()
            self._small_at = ended + min(ended - began, _GATHER)
        elif is_poll:
            self.look_at(self._round.rate_at)
        elif self._round.cursor == "{}":
            self.rest(self._round.rate_at)
        return claimed

    def forget(self) -> None:
        """Forget the current round after an error."""
        self.spoil()

    def _claim(self, room: int) -> list[Claimed]:
        left = room
        ended = Counter(self.ended.popleft() for _ in range(len(self.ended)))
        hints = ended if self._round.has_full else NOTHING_ENDED
        tasks = [task for task in self._tasks if task not in self._backfill.limits.stored.held_up]

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
                    cursor=self._round.cursor,
                    hints=hints,
                    among=which,
                )
            next_at = math.inf if look.next_in is None else time.monotonic() + look.next_in
            self._round = _Round(look.cursor, min(self._round.rate_at, next_at), look.has_full)
            return look.claimed

        def candidates(which: Among) -> list[int]:
            with self._engine.begin() as connection:
                return self._queries.to_claim_limited(connection, self._queue, self._tasks, which)

        parts = self._set_aside.around("its claim", claim, candidates)
        return [job for part in parts for job in part]

    def _in_turn(self, claims: list[_Claim]) -> list[_Claim]:
        """Return the kinds of claims to try, in order.

        Jobs without gates are claimed here only if the queue is limited. In that case, the order alternates.
        """
        if self._queue not in self._backfill.limits.queues:
            return claims[:1]
        return claims[::-1] if next(self._is_plain_first) else claims
