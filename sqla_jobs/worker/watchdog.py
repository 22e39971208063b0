"""The watchdog, which interrupts runs that exceed their timeout and logs the stacks of slow runs."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from sqla_jobs.execution.coroutine import CoroutineBody
from sqla_jobs.execution.held_job import Attempt
from sqla_jobs.execution.interrupt import LeaseGone, TimedOut
from sqla_jobs.rules.error_text import place_of
from sqla_jobs.rules.wording import plural
from sqla_jobs.runtime.loop import Loop
from sqla_jobs.worker.event_loop import EventLoop

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_LOOK, _LOOK_IDLE = 0.1, 0.25
_EARLIER = 0.5
"""A coroutine is abandoned this many seconds before a parent would kill the process, so that other jobs continue."""


class Watchdog:
    """Looks at the running jobs ten times a second, if there are any.

    It logs the stack of a run that takes longer than `slow_after` seconds, and again each time its duration doubles.
    Setting `stacks_wanted` logs the stacks of all runs. It abandons a coroutine that is still running `kill_after`
    seconds after its cancellation. It reports jobs that block the event loop, and reports when the application has
    closed the loop.
    """

    def __init__(
        self,
        at_work: Mapping[int, Attempt],
        events: EventLoop | None,
        loop_gone: Callable[[], None],
        *,
        slow_after: float,
        kill_after: float,
    ) -> None:
        """Prepare to watch. `at_work` holds the attempts by run id.

        `loop_gone` is called, repeatedly, once the application has closed its event loop.
        """
        self._at_work = at_work
        self._events = events
        self._loop_gone = loop_gone
        self._slow_after = slow_after
        self._abandon_after = kill_after - min(_EARLIER, kill_after / 2)
        self.stacks_wanted: bool = False
        self._loop = Loop("watching the running jobs", self.step, name="sqla_jobs-watch")

    def start(self) -> None:
        self._loop.start()

    def stop(self) -> None:
        self._loop.stop(threading.TIMEOUT_MAX)

    def step(self) -> float:
        """Look at the running jobs. Return when to look again."""
        self._look(time.monotonic())
        return time.monotonic() + (_LOOK if self._at_work else _LOOK_IDLE)

    def _look(self, now: float) -> None:
        if self._events is not None and self._events.is_gone:
            self._loop_gone()
            return
        running = [attempt for attempt in list(self._at_work.values()) if attempt.is_running]
        for attempt in running:
            deadline = attempt.deadline  # read once: it rests while a step is stored
            if deadline is not None and now > deadline:
                attempt.interrupt(TimedOut)
            if attempt.is_lost:  # perhaps the task's code was just about to begin
                attempt.interrupt(LeaseGone)
            body = attempt.body  # read once: another thread clears it when the run ends
            if isinstance(body, CoroutineBody):
                self._abandon_if_deaf(attempt, body, now)
        self._report(running)
        if self._events is not None and running:
            self._events.look(now, self._name_of)

    def _abandon_if_deaf(self, attempt: Attempt, body: CoroutineBody, now: float) -> None:
        cancelled_at = body.cancelled_at
        if cancelled_at is not None and now > cancelled_at + self._abandon_after:
            body.abandon()
            log.error(
                "%s is still running %.1f s after it was cancelled, and is abandoned: a coroutine must not suppress "
                "CancelledError. It is here:\n%s",
                attempt,
                now - cancelled_at,
                body.stack(),
            )

    def _name_of(self, task: asyncio.Task[Any] | None) -> str:
        for attempt in list(self._at_work.values()):
            body = attempt.body
            if task is not None and isinstance(body, CoroutineBody) and body.task is task:
                return str(attempt)
        return "something"

    def _report(self, running: list[Attempt]) -> None:
        wanted, self.stacks_wanted = self.stacks_wanted, False
        if wanted:
            log.warning("%s running here", plural(len(running), "job"))
        for attempt in running:
            seconds = time.monotonic() - (attempt.started_at or 0.0)
            is_slow = seconds > max(self._slow_after, 2 * attempt.reported_after)
            if is_slow:
                attempt.reported_after = seconds
            if is_slow or wanted:
                body = attempt.body
                stack = "it has ended meanwhile" if body is None else body.stack()
                log.warning(
                    "%s has run for %.1f s and is here: %s",
                    attempt,
                    seconds,
                    "\n".join(filter(None, (place_of(stack), stack))),
                )
