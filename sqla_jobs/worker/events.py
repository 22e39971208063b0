"""Delivery of events to handlers, in a thread that no job waits for."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import cast

import sqlalchemy as sa

from sqla_jobs.database.binding import Context
from sqla_jobs.execution.held_job import Attempt
from sqla_jobs.queries import Queries
from sqla_jobs.queries.undelivered import Undelivered
from sqla_jobs.queries.values import Claimed, RunEnd, read_headers
from sqla_jobs.rules.every import Every
from sqla_jobs.rules.redaction import NOTHING
from sqla_jobs.runtime.loop import Loop
from sqla_jobs.tasks.hooks import EventName, Hooks, RunEvent

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_MOST = 10_000
"""The maximum number of events that wait for slow handlers. Further events are dropped."""
_LOOK = 5.0
"""Seconds between looks for undelivered events of failed and lost attempts."""
_SAY_AGAIN = 60.0
"""Seconds between log lines about dropped events."""
_STOP = 5.0
"""The most seconds allowed for handlers when the worker stops."""
_AT_LEAST_ONCE = ("failed", "lost")
_LATE = (*_AT_LEAST_ONCE, "retried", "cancelled")
"""The outcomes whose events can be delivered later, from the rows of runs.

The last two are outcomes of attempts that could be ended only by killing their process.
"""


class EventDelivery:
    """Takes events from any thread, and calls the handlers one by one in its own thread, inside `context`.

    Some attempts are marked in the database until their handlers have returned: failed ones, lost ones, and those that
    could be ended only by killing their process. If this process dies before that, another worker delivers the events.
    """

    def __init__(
        self, engine: sa.Engine, queries: Queries, hooks: Hooks, context: Context, tasks: Collection[str]
    ) -> None:
        """Prepare delivery. `tasks` are the names and aliases of tasks whose jobs may have been lost elsewhere."""
        self._engine = engine
        self._queries = queries
        self._hooks = hooks
        self._context = context
        self._tasks = tasks
        self._wanted = frozenset(hooks.wanted())
        self._guaranteed = hooks.wanted(_LATE)
        self._waiting = deque[RunEvent]()
        self._delivered: list[int] = []
        """Run ids of attempts whose marks are to be removed."""
        self._saying = Every(_SAY_AGAIN)
        self._look_at = 0.0 if self._guaranteed else math.inf
        what = "delivering events of failed and lost attempts"
        self._loop = Loop(what, self.step, name="sqla_jobs-events", finishes=True)

    def start(self) -> None:
        if self._wanted:
            self._loop.start()

    def stop(self, timeout: float) -> None:
        """Stop, after delivering the waiting events for a few seconds, and for `timeout` seconds at most."""
        if not self._loop.stop(min(_STOP, timeout)):
            log.warning("%d events are left undelivered: their handlers take too long", len(self._waiting))

    @property
    def started(self) -> Callable[[Attempt], None] | None:
        """The callback for the beginning of a run. None if no handler wants that event."""
        return self._on_started if "started" in self._wanted else None

    def _on_started(self, attempt: Attempt) -> None:
        self._put([started(attempt.job)])

    def ended(self, ends: Iterable[RunEnd]) -> None:
        """Queue the events of ended attempts. The ends are already stored."""
        if self._wanted:
            events = (event_of(end) for end in ends if end.outcome.kind in self._wanted)
            self._put(event for event in events if event is not None)

    def _put(self, events: Iterable[RunEvent]) -> None:
        for event in events:
            if event.name not in self._wanted:
                continue
            if len(self._waiting) >= _MOST:
                self._say_dropped()
                return
            self._waiting.append(event)
            self._loop.tell()

    def _say_dropped(self) -> None:
        if self._saying.is_over():
            log.warning("%d events wait for their handlers; new ones are dropped, or delivered later if failed", _MOST)

    def step(self) -> float:
        """Deliver the waiting events, and those of dead processes if a look for them is due."""
        self._deliver_waiting()
        self._mark()
        if time.monotonic() >= self._look_at and not self._loop.stopping.is_set():
            self._look()
            self._look_at = time.monotonic() + _LOOK
        return self._look_at

    def _deliver_waiting(self) -> None:
        while self._waiting:
            event = self._waiting.popleft()
            self._deliver(event)
            if event.name in _AT_LEAST_ONCE:
                self._delivered.append(event.run_id)

    def _deliver(self, event: RunEvent) -> None:
        try:
            with self._context(None):
                self._hooks.tell(event)
        except BaseException:
            log.exception("the context of the handlers of %s, job %s, failed on exit", event.name, event.job_id)

    def _look(self) -> None:
        with self._engine.begin() as connection:
            undelivered = self._queries.take_undelivered(connection, self._guaranteed, self._tasks)
        for one in undelivered:
            if self._loop.stopping.is_set():
                return
            self._deliver(_event_of_row(one))
            self._delivered.append(one.run_id)
            self._mark()

    def _mark(self) -> None:
        if self._delivered:
            with self._engine.begin() as connection:
                self._queries.mark_delivered(connection, self._delivered)
            self._delivered.clear()


def started(job: Claimed) -> RunEvent:
    """Return the event for the start of an attempt."""
    return _event_of("started", job)


def event_of(end: RunEnd) -> RunEvent | None:
    """Return the event for the end of an attempt, or None if the attempt was given back."""
    job, outcome = end.lease, end.outcome
    if not isinstance(job, Claimed) or outcome.kind == "released":
        return None
    failure = outcome.failure
    return _event_of(
        cast("EventName", str(outcome.kind)),
        job,
        error_type=None if failure is None else failure.type,
        error=None if failure is None else failure.message,
        retry_in=outcome.delay,
        seconds=end.finished - end.started,
    )


def _event_of(
    name: EventName,
    job: Claimed | Undelivered,
    *,
    error_type: str | None = None,
    error: str | None = None,
    retry_in: float | None = None,
    seconds: float = 0.0,
    process_killed: bool = False,
) -> RunEvent:
    return RunEvent(
        name=name,
        job_id=job.job_id,
        run_id=job.run_id,
        process_id=job.process_id,
        task=job.task,
        queue=job.queue,
        attempt=job.attempt,
        max_attempts=job.max_attempts,
        headers=read_headers(job.headers),
        error_type=error_type,
        error=error,
        retry_in=retry_in,
        seconds=seconds,
        process_killed=process_killed,
    )


def _event_of_row(row: Undelivered) -> RunEvent:
    return _event_of(
        cast("EventName", row.outcome),
        row,
        error_type=row.error_type,
        error=row.error and NOTHING.text(row.error),
        seconds=row.seconds,
        process_killed=row.process_killed,
    )
