"""Bookkeeping when attempts start and end."""

from __future__ import annotations

from collections.abc import Callable

from sqla_jobs.execution.attempt import Attempt
from sqla_jobs.queries import Claimed, RunEnd
from sqla_jobs.rules.outcomes import SUCCEEDED
from sqla_jobs.runtime.counters import Counters
from sqla_jobs.runtime.storing import RESCUED
from sqla_jobs.worker.attempts import Attempts
from sqla_jobs.worker.claimer import Claimer
from sqla_jobs.worker.events import EventDelivery
from sqla_jobs.worker.limited_source import LimitedSource
from sqla_jobs.worker.resolver import JobResolver


class Bookkeeping:
    """Removes ended attempts from the table, counts them, notifies handlers, and frees their places.

    Its methods are called by the thread that runs a job or that has stored the attempt's end.
    """

    def __init__(
        self,
        attempts: Attempts,
        counters: Counters,
        events: EventDelivery,
        claimer: Claimer,
        limited: LimitedSource,
        resolver: JobResolver,
    ) -> None:
        self._attempts = attempts
        self._counters = counters
        self._events = events
        self._claimer = claimer
        self._limited = limited
        self._resolver = resolver
        self._notify_started = events.started
        self.started: Callable[[Attempt], None] | None = None
        """Called when a run begins. None if neither handlers nor counters need it."""
        if self._notify_started is not None or counters.is_wanted:
            self.started = self._on_started

    def _on_started(self, attempt: Attempt) -> None:
        self._counters.begun(attempt.job.task, attempt.job.queue, attempt.waited)
        if self._notify_started is not None:
            self._notify_started(attempt)

    def committed(self, attempt: Attempt) -> None:
        """Handle an attempt whose run has already stored its own end: a success, a sleep or a wait."""
        if attempt.suspended is not None:
            self.settled([attempt.suspended], [attempt.suspended])
            return
        ends = [attempt.ended(SUCCEEDED)]
        self._events.ended(ends)
        self._remove(ends)

    def settled(self, ends: list[RunEnd], stored: list[RunEnd]) -> None:
        """Handle ends that are stored, or whose attempts lost their leases.

        `stored` contains the ends that were stored with their own outcome, or with `cancelled` instead.
        """
        self._events.ended(stored)
        self._remove(ends)
        for outcome in [end.outcome for end in ends if end.outcome is not SUCCEEDED]:
            if outcome.delay is not None:
                self._claimer.expect(outcome.delay)
            elif outcome.kind == "released":
                self._limited.tell()

    def _remove(self, ends: list[RunEnd]) -> None:
        self._resolver.ended(ends)
        # free the places first: otherwise `drain` would see neither these jobs nor those waiting for their places
        self._limited.ended([end.lease for end in ends if isinstance(end.lease, Claimed)])
        ended = [end for end in self._attempts.remove(ends) if end.outcome.kind != "released"]
        self._attempts.count(len(ended))
        if self._counters.is_wanted:
            counted = [end for end in ended if end.outcome != RESCUED]
            if self.started is None:  # counting was off when the worker started
                for end in counted:
                    self._counters.begun(end.lease.task, end.lease.queue, _waited(end))
            self._counters.ended(counted)


def _waited(end: RunEnd) -> float:
    """Return the seconds from the time when the job was due to the beginning of its run."""
    return (end.lease.waited if isinstance(end.lease, Claimed) else 0.0) + end.started
