"""How a worker learns that there is work."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from sqla_jobs.database.engines import for_itself
from sqla_jobs.runtime.listener import Listener
from sqla_jobs.runtime.promoter import BUSY, SOON, Promoter, poll_in
from sqla_jobs.worker.attempts import Shared


class Hearer(Protocol):
    """Is told of new jobs in a queue; "" is any queue."""

    def heard(self, queue: str) -> bool:
        """Returns at once whether threads are free for them."""
        ...

    @property
    def has_free_slot(self) -> bool:
        """Whether a thread waits for a job of any queue."""
        ...

    def look_for(self, queue: str) -> None:
        """`heard`, but may claim before it returns."""
        ...

    def look_again(self) -> bool:
        """Look for jobs in all queues, below the floors too. Returns what `heard` does."""
        ...


class Lookout(Protocol):
    """Listens, polls and promotes, for one worker or for several."""

    @property
    def promote_at(self) -> float:
        """When the worker is to promote next, by `time.monotonic()`."""
        ...

    @property
    def workers(self) -> int:
        """How many serve any of the same queues."""
        ...

    @property
    def has_limits(self) -> bool:
        """Whether there are rows of limits."""
        ...

    def promote(self, now: float) -> bool:
        """Queue jobs that are due. Returns whether jobs may start now that could not before."""
        ...

    def expect(self, delay: float) -> bool:
        """A job will be due in `delay` seconds. Returns whether that brings the next promotion forward."""
        ...

    def expect_new(self, *, is_busy: bool) -> None:
        """There are new jobs, and one of them may have a delay. Busy: no slot is free."""
        ...

    def poll_in(self) -> float:
        """Seconds after which a queue that had no more jobs is asked again."""
        ...

    def found_more(self, queue: str) -> None:
        """The first claim after a rest filled all room, so other workers may find more."""
        ...

    def start(self, hearer: Hearer) -> None: ...
    def stop(self) -> None: ...


class OwnLookout:
    """A worker without a parent listens and polls for itself."""

    def __init__(self, shared: Shared, tasks: Sequence[str]) -> None:
        self.workers: int = 1
        self.has_limits: bool = False
        self._engine = shared.engine
        self._settings = shared.settings
        self._channel = shared.models.channel
        self._promoter = Promoter(shared.claims, shared.queries, shared.settings, shared.set_aside, tasks=tasks)

    @property
    def promote_at(self) -> float:
        return self._promoter.at

    def promote(self, now: float) -> bool:
        promotions = self._promoter.promote(now)
        self.workers = max((promotion.workers for promotion in promotions), default=self.workers)
        self.has_limits = any(promotion.has_limits for promotion in promotions)
        return self._promoter.is_news

    def expect(self, delay: float) -> bool:
        return self._promoter.expect(delay)

    def expect_new(self, *, is_busy: bool) -> None:
        self._promoter.expect(BUSY if is_busy else SOON)

    def poll_in(self) -> float:
        return poll_in(self._settings)

    def found_more(self, queue: str) -> None:
        """Other workers listen for themselves."""

    def start(self, hearer: Hearer) -> None:
        self._listener = Listener(
            partial(for_itself, self._engine),
            self._channel,
            hearer.heard,
            look_for=hearer.look_for,
            greets=True,
            patience=self._settings.patience,
        )
        self._listener.start()

    def stop(self) -> None:
        self._listener.stop()
