"""The promoter, which queues scheduled jobs when they are due."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Sequence

import sqlalchemy as sa

from sqla_jobs.queries import Queries
from sqla_jobs.queries.values import Among, Promotion
from sqla_jobs.rules.every import Every
from sqla_jobs.runtime.set_aside import SetAside
from sqla_jobs.runtime.settings import Settings

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

SOON = 0.005
"""Seconds from a notification about new jobs to a promotion: one of those jobs may have a delay."""
BUSY = 0.1
"""Seconds from a notification about new jobs to a promotion if no slot is free."""
_REPORT = 60.0
"""Seconds between two searches for queued jobs of tasks unknown to this worker."""


def poll_in(settings: Settings) -> float:
    """Return the seconds until the next poll. The number is random, so that workers do not poll simultaneously."""
    return settings.poll * random.uniform(1.0, 1.4)  # noqa: S311


class Promoter:
    """Promotes jobs at every poll and exactly when the next scheduled job is due.

    Only one thread at a time may call `promote`.
    """

    def __init__(
        self,
        engine: sa.Engine,
        queries: Queries,
        settings: Settings,
        set_aside: SetAside,
        *,
        tasks: Sequence[str],
    ) -> None:
        self.at: float = 0.0
        """When to promote jobs next, by `time.monotonic()`."""
        self._planning = threading.Lock()
        self._due_at = math.inf
        self._engine = engine
        self._queries = queries
        self._settings = settings
        self._set_aside = set_aside
        self.tasks = tasks
        self._reporting = Every(_REPORT)
        self._reported: set[str] = set()

    def expect(self, delay: float) -> bool:
        """Expect a job to become due in `delay` seconds. Return whether the next promotion is now earlier."""
        at = time.monotonic() + delay
        with self._planning:
            is_sooner = at < self.at
            self.at = min(self.at, at)
        return is_sooner

    def promote(
        self, now: float, *, again_at: float, poll: Callable[[Among], Promotion] | None = None
    ) -> tuple[Promotion, bool]:
        """Queue the jobs that are due, in one statement. If the server refuses some jobs, use smaller parts.

        Do so again at `again_at`, or when the next job is due. `poll` is a statement that promotes and also looks for
        other queued jobs.

        Return also whether any jobs may have become ready to start: those that this queued, or others if a time that
        the server had announced has come, such as the end of a pause.
        """
        self.at = again_at  # first, so that it stays what `expect` makes of it from now on
        try:
            parts = self._set_aside.around("its promotion", poll or self._promote_among, self._candidates_among)
        except Exception:
            self.at = 0.0  # otherwise the next try would only wait, and count as a success
            raise
        promotion = Promotion.of(parts)
        # not `now`: the announced time may have come after `now` but before the server has read its clock
        is_news = time.monotonic() >= self._due_at or promotion.promoted > 0
        self._due_at = now + promotion.due_in
        with self._planning:  # `expect` may have been called in the meantime
            self.at = min(self.at, self._due_at)
        if self._reporting.is_over():
            self._report_unknown()
        return promotion, is_news

    def _promote_among(self, which: Among) -> Promotion:
        with self._engine.begin() as connection:
            return self._queries.promote(connection, queues=self._settings.queues, among=which)

    def _candidates_among(self, which: Among) -> list[int]:
        with self._engine.begin() as connection:
            return self._queries.to_promote(connection, which)

    def _report_unknown(self) -> None:
        with self._engine.begin() as connection:
            waiting = self._queries.unknown_to(connection, list(self._settings.queues), self.tasks)
        for task in waiting.keys() - self._reported:
            self._reported.add(task)
            log.warning(
                "%d queued jobs are of task %.200r, which this worker does not know; they wait for one that does",
                waiting[task],
                task,
            )
