"""What follows from the starts and ends of attempts."""

from __future__ import annotations

from collections.abc import Callable

from sqla_jobs.execution.attempt import Attempt
from sqla_jobs.queries import Claimed, Lease, RunEnd
from sqla_jobs.rules.outcomes import Outcome
from sqla_jobs.runtime.counters import Counters
from sqla_jobs.runtime.storing import RESCUED
from sqla_jobs.worker.attempts import Attempts
from sqla_jobs.worker.claimer import Claimer
from sqla_jobs.worker.events import EventTeller
from sqla_jobs.worker.limited import LimitedClaimer


class Bookkeeping:
    """Attempts leave the table and are counted, handlers are told of them, and their places are free.

    Called by whichever thread runs a job or has stored its end.
    """

    def __init__(self, attempts: Attempts, counters: Counters, events: EventTeller) -> None:
        self._attempts = attempts
        self._counters = counters
        self._events = events
        self._tell_started = events.started
        self.started: Callable[[Attempt], None] | None = None
        """To be called as a run begins; None if nobody wants to know."""
        if self._tell_started is not None or counters.is_wanted:
            self.started = self._on_started

    def inform(self, claimer: Claimer, limited: LimitedClaimer) -> None:
        """These are told from now on."""
        self._claimer, self._limited = claimer, limited

    def _on_started(self, held: Attempt) -> None:
        self._counters.begun(held.job.task, held.waited)
        if self._tell_started is not None:
            self._tell_started(held)

    def succeeded(self, held: Attempt) -> None:
        """The transaction of a run is committed, and its end with it."""
        self._events.succeeded(held)
        self._free_gates(held.job)
        self._attempts.count(self._attempts.remove(held.job.run_id))
        if self._counters.is_wanted:
            self._counters.ended([held.ended(Outcome.succeeded())])

    def settled(self, ends: list[RunEnd], stored: list[RunEnd]) -> None:
        """The ends are stored, or their leases are lost; `stored` are those that are stored as they are."""
        self._events.ended(stored)
        ended: list[RunEnd] = []
        for end in ends:
            outcome = end.outcome
            self._free_gates(end.lease)
            if self._attempts.remove(end.lease.run_id) and outcome.kind != "released":
                ended.append(end)
            if outcome.delay is not None:
                self._claimer.expect(outcome.delay)
            elif outcome.kind == "released":
                self._limited.wake()
        self._attempts.count(len(ended))
        self._counters.ended(end for end in ended if end.outcome != RESCUED)

    def _free_gates(self, lease: Lease | Claimed) -> None:
        """Its places are free. Called before it leaves the table of attempts, so that `drain` misses neither."""
        if isinstance(lease, Claimed):
            self._limited.ended(lease)
