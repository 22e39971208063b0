"""The state of a parent and its children, readable from any thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from sqla_jobs.rules.wording import duration
from sqla_jobs.runtime.counters import Counters, Totals
from sqla_jobs.runtime.metrics import ByShard
from sqla_jobs.supervisor.messages import Observed

if TYPE_CHECKING:
    from sqla_jobs.supervisor.child import ChildProcess
    from sqla_jobs.supervisor.crew import Crew
    from sqla_jobs.supervisor.options import Setup

_STUCK = 10.0
"""Seconds without an iteration after which the main loop counts as stuck. It should iterate every 0.1 s."""


class Report:
    """The parent's report for metrics and health checks. The main thread writes it; any thread may read it."""

    def __init__(self, crews: Sequence[Crew], counters: Counters, setup: Callable[[], Setup]) -> None:
        """Start a report. `counters` are those of the parent itself, and of the children that have ended."""
        self._crews = crews
        self._setup = setup
        self._counters = counters
        self._totals: dict[int, Totals] = {}
        """The last totals of each child that has not ended, by pid."""
        self._lock = threading.Lock()
        self.ended: Callable[[int], None] = lambda pid: None
        """Called with the pid of a child that has ended."""
        self._turned_at = time.monotonic()

    def turned(self) -> float:
        """Record an iteration of the main loop. Return the number of seconds since the last one."""
        last, self._turned_at = self._turned_at, time.monotonic()
        return self._turned_at - last

    def hear(self, child: ChildProcess, message: Observed) -> None:
        """Store a child's report on its worker."""
        child.trouble = message.trouble
        with self._lock:
            self._totals[child.pid] = message.totals

    def take_over(self, child: ChildProcess) -> None:
        """Add an ended child's counts to those of the children that ended earlier."""
        self.ended(child.pid)
        with self._lock:
            self._counters.take_over(self._totals.pop(child.pid, Totals()))

    def totals(self) -> Totals:
        """Return the sum of all children's counts, including ended children. It is at most a second old."""
        with self._lock:
            return Totals.of([self._counters.totals(), *self._totals.values()])

    def figures(self) -> ByShard:
        """Return the figures of each database."""
        return {crew.name: crew.figures() for crew in [*self._crews]}

    def can_ask(self) -> bool:
        """Return whether the address of any database is known. It is not while the worker starts."""
        return any(crew.identity is not None for crew in [*self._crews])

    def stalled(self) -> int:
        """Return the number of children that make no progress."""
        return sum(child.is_hung for child in self._children())

    def _children(self) -> Iterator[ChildProcess]:
        return (child for crew in [*self._crews] for child in crew.children)

    def why_not_alive(self) -> str | None:
        """Return why the process should be restarted, or `None` if its main loop is running."""
        since = time.monotonic() - self._turned_at
        return f"the main loop has not run for {duration(since)}" if since > _STUCK else None

    def why_not_ready(self) -> str | None:
        """Return why no child takes jobs.

        Return `None` if one does, and its last heartbeat is younger than half a lease.
        """
        registered = [child for child in self._children() if child.is_registered]
        if not registered:
            return "no worker process is registered in the database"
        children = [child for child in registered if not child.is_leaving]
        if not children:
            return "no worker process takes jobs: all of them are stopping"
        reasons = {child.pid: self._why_idle(child) for child in children}
        if None in reasons.values():
            return None
        return "\n".join(f"process {pid}: {why}" for pid, why in reasons.items())

    def _why_idle(self, child: ChildProcess) -> str | None:
        if child.is_hung:
            return f"it has made no progress for {duration(child.silence)}"
        age = time.monotonic() - child.started.beat_at
        if age >= self._setup().spec.settings.lease / 2:
            return f"its last heartbeat was stored {duration(age)} ago"
        if child.trouble is not None:
            return f"it cannot claim: {child.trouble}"
        return None
