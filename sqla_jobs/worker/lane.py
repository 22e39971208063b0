"""A lane: what one source of jobs has for one queue."""

from __future__ import annotations

import math
from collections.abc import Callable

from sqla_jobs.worker.backlog import Backlog


class Lane:
    """One queue and one source of its jobs. It rests once the source was found exhausted, until there is news.

    Only this is remembered: with which token the source was exhausted. A look notes the token before its statements,
    and rests with that token afterwards. So a rest ends, or does not begin, after news that the look may not have seen.
    """

    def __init__(self, backlog: Backlog) -> None:
        self.backlog = backlog
        self.wake: Callable[[], None] = _nobody
        """Wakes the loop that fills the lane."""
        self.token: object = object()
        """An object that each news replaces."""
        self.may_tell: bool = True
        """False from the time when other workers are told that they may find more jobs, until the next rest."""
        self._began: object = None
        """The token with which the present look began. None once another look is required after it."""
        self.exhausted: object = None
        """The token with which the last look began. None unless it found the source exhausted."""
        self.until: float = math.inf
        """When to look again during a rest, by `time.monotonic()`."""

    def tell(self) -> None:
        """End a rest: there may be more jobs, or they may start now. This does not wake the loop."""
        self.token = object()

    def begin(self) -> None:
        """Begin a look, of one or more statements."""
        self._began, self.exhausted = self.token, None

    def spoil(self) -> None:
        """Require another look after this one: it has claimed or skipped jobs."""
        self._began = self.exhausted = None

    def rest(self, until: float) -> None:
        """End a look that has found no more jobs. Rest until there is news since it began, or until a time."""
        self.until, self.exhausted = until, self._began
        self.may_tell = True

    def rest_with(self, token: object) -> None:
        """Rest without a look, until there is other news than `token`."""
        self._began = token
        self.rest(math.inf)

    def look_at(self, at: float) -> None:
        """Look again at this time, by `time.monotonic()`, also during a rest."""
        self.until = at

    def rests(self, now: float) -> bool:
        """Return whether nothing can start that the last look has not found."""
        return self.exhausted is self.token and now < self.until

    def room(self, now: float) -> int:
        """Return how many jobs to claim: 0 during a rest, or if no slot is free and the batch would be small."""
        return 0 if self.rests(now) else self.backlog.room(now)

    def next_at(self, now: float) -> float:
        """Return when to look next without news. It is infinite if only a free slot is missing."""
        free_at = self.backlog.free_at if now < self.backlog.free_at else math.inf
        if self.rests(now):
            return min(self.until, free_at)
        return now if self.room(now) else free_at


def _nobody() -> None:
    """Do nothing: no loop is running yet."""
