"""How a child learns that there is work: its parent tells it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from sqlalchemy import Engine

from sqla_jobs.database.subscribers import subscribe
from sqla_jobs.rules.checks import DAY
from sqla_jobs.supervisor.connection import ParentConnection
from sqla_jobs.supervisor.messages import Expecting, PassOn, Serving
from sqla_jobs.worker.attempts import Shared
from sqla_jobs.worker.lookout import Hearer


class ForwardedLookout:
    """The parent listens, polls and promotes. This process itself only hears of what its own jobs enqueue."""

    promote_at: float = math.inf

    def __init__(self, parent: ParentConnection, engine: Engine, claims: Engine, shared: Shared, tasks: Sequence[str]):
        self._parent = parent
        self._channel = shared.models.channel
        self._longest = 2 * shared.settings.poll
        self._tasks = tuple(tasks)
        self._expected_at = math.inf

    @property
    def workers(self) -> int:
        return self._parent.workers

    @property
    def has_limits(self) -> bool:
        return self._parent.has_limits

    def promote(self, now: float) -> bool:
        return False

    def expect(self, delay: float) -> bool:
        """Tell the parent, unless its next poll comes before."""
        now = time.monotonic()
        at = now + delay
        if delay < self._longest and not now < self._expected_at <= at:
            self._expected_at = at
            self._parent.hint(Expecting(delay))
        return False

    def expect_new(self, *, is_busy: bool) -> None:
        """The parent has heard of the same jobs."""

    def poll_in(self) -> float:
        return DAY

    def found_more(self, queue: str) -> None:
        self._parent.hint(PassOn(queue))

    def start(self, hearer: Hearer) -> None:
        self._unsubscribe = subscribe(self._channel, hearer.heard)
        self._parent.tell(hearer)
        self._parent.send(Serving(self._tasks, self._parent.sessions))

    def stop(self) -> None:
        self._unsubscribe()
        self._parent.tell(None)
