"""The runners of a worker's jobs: threads for plain tasks, and one event loop for coroutine tasks."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from sqlalchemy.util import greenlet_spawn

from sqla_jobs.execution.coroutine import CoroutineBody
from sqla_jobs.execution.held_job import Attempt
from sqla_jobs.execution.interrupt import Interruptible, Stopped, body
from sqla_jobs.queries import RunEnd
from sqla_jobs.rules.outcomes import Failure, Outcome
from sqla_jobs.worker.backlog import Backlog
from sqla_jobs.worker.event_loop import EventLoop
from sqla_jobs.worker.threads import Threads
from sqla_jobs.worker.watchdog import Watchdog

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_FINALLY = 2.0
"""Seconds allowed for coroutines to end after the stopping worker has cancelled them."""
_IDLE = 0.1
"""Seconds allowed for idle threads to end while another thread is still busy."""


@dataclass(frozen=True)
class Callbacks:
    """The functions that runners call."""

    execute: Callable[[Attempt, Interruptible], RunEnd | None]
    """Runs a job."""
    ended: Callable[[RunEnd], None]
    """Receives each end that `execute` returned."""
    committed: Callable[[Attempt], None]
    """Receives each job whose end is already stored."""
    loop_gone: Callable[[], None]
    """Reports, repeatedly, that the application has closed the event loop of the coroutine tasks."""


class Runners:
    """Runs the jobs of all queues, and passes their ends on to be stored."""

    def __init__(
        self,
        backlogs: Sequence[Backlog],
        calls: Callbacks,
        coroutines: Collection[str],
        events: EventLoop | None,
        *,
        slow_after: float,
        kill_after: float,
    ) -> None:
        """Prepare slots. `coroutines` are the names of the tasks that run in `events`.

        A coroutine is abandoned if it is still running `kill_after` seconds after its cancellation.
        """
        self._at_work: dict[int, Attempt] = {}
        """The attempts that are running or on their way to the event loop, by run id."""
        self._events = events
        self._watchdog = Watchdog(self._at_work, events, calls.loop_gone, slow_after=slow_after, kill_after=kill_after)
        self._slots = [_Slots(backlog, calls, frozenset(coroutines), events, self._at_work) for backlog in backlogs]

    def start(self) -> None:
        """Start running the jobs that the backlogs begin, in copies of the present context."""
        self._watchdog.start()
        for slots in self._slots:
            slots.start()

    @property
    def running(self) -> list[Attempt]:
        """The attempts that are running."""
        return [attempt for attempt in list(self._at_work.values()) if attempt.is_running]

    @property
    def stranded(self) -> list[Attempt]:
        """Attempts given to an event loop that the application has closed. These attempts never end."""
        return [attempt for slots in self._slots for attempt in slots.stranded]

    def show_stacks(self) -> None:
        """Make the watchdog log the stack of each running job."""
        self._watchdog.stacks_wanted = True

    def wait(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for all jobs to end. Afterwards, no more jobs are interrupted.

        Coroutines that are still running after `timeout` seconds are cancelled before this returns.
        """
        _wait_while(lambda: any(slots.is_busy for slots in self._slots), timeout)
        late = self._coroutines
        for attempt in late:
            attempt.interrupt(Stopped)
        if late:
            _wait_while(lambda: bool(self._coroutines), _FINALLY)
        for slots in self._slots:
            slots.threads.close()
        for slots in self._slots:
            slots.threads.join(time.monotonic() + (_IDLE if slots.is_busy else timeout))
        self._watchdog.stop()

    @property
    def _coroutines(self) -> list[Attempt]:
        return [attempt for attempt in self.running if isinstance(attempt.body, CoroutineBody)]


def _wait_while(condition: Callable[[], bool], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while condition() and time.monotonic() < deadline:
        time.sleep(0.005)


class _Slots:
    """Runs the jobs of one queue in its slots. A slot runs jobs of plain and coroutine tasks, one after another."""

    def __init__(
        self,
        backlog: Backlog,
        calls: Callbacks,
        coroutines: frozenset[str],
        events: EventLoop | None,
        at_work: dict[int, Attempt],
    ) -> None:
        self._backlog = backlog
        self._calls = calls
        self._coroutines = coroutines
        self._events = events
        self._at_work = at_work
        self.threads = Threads(backlog.name, backlog.concurrency, self._in_thread)

    @property
    def is_busy(self) -> bool:
        """True while any of the queue's jobs, apart from stranded ones, is running or about to run."""
        return self._backlog.busy > len(self.stranded)

    @property
    def stranded(self) -> list[Attempt]:
        if self._events is None or not self._events.is_gone:
            return []
        at_work = [attempt for attempt in list(self._at_work.values()) if attempt.job.queue == self._backlog.name]
        return [attempt for attempt in at_work if attempt.job.task in self._coroutines]

    def start(self) -> None:
        self._context = contextvars.copy_context()  # includes variables that worker contexts have set
        self._backlog.begin = self._begin

    def _begin(self, attempt: Attempt) -> None:
        if attempt.job.task in self._coroutines:
            self._begin_in_loop(attempt)
        elif not self.threads.begin(attempt):
            self._backlog.put_back(attempt)

    def _begin_in_loop(self, attempt: Attempt) -> None:
        assert self._events is not None
        self._at_work[attempt.job.run_id] = attempt
        try:
            self._events.begin(self._begin_slot, self._events, attempt, context=self._context)
        except RuntimeError as error:  # the application has closed the loop
            log.debug("%s is stranded: %s", attempt, error)

    def _begin_slot(self, events: EventLoop, attempt: Attempt) -> None:
        events.loop.create_task(greenlet_spawn(self._in_greenlet, events, attempt), context=self._context.copy())

    def _in_greenlet(self, events: EventLoop, attempt: Attempt) -> None:
        slot = asyncio.current_task(events.loop)
        assert slot is not None
        following: Attempt | None = attempt
        while following is not None:
            following = self._run(following, CoroutineBody(events.loop))
            if following is not None and following.job.task not in self._coroutines:
                self._begin(following)
                return
            if following is not None and slot.cancelling():  # the loop's owner must not wait for new jobs
                self._begin_in_loop(following)
                return

    def _in_thread(self, attempt: Attempt) -> None:
        own = body()
        following = self._run(attempt, own)
        while following is not None:
            if following.job.task in self._coroutines:
                self._begin_in_loop(following)
                return
            following = self._run(following, own)

    def _run(self, attempt: Attempt, body: Interruptible) -> Attempt | None:
        """Run a job. Return the slot's next job."""
        run_id, calls = attempt.job.run_id, self._calls
        self._at_work[run_id] = attempt
        try:
            end = self._context.copy().run(calls.execute, attempt, body)
        except BaseException as error:
            log.exception("running job %s failed inside the library", attempt.job.job_id)
            end = attempt.ended(Outcome.failed(Failure.of(error)))
        attempt.conclude()
        del self._at_work[run_id]
        if end is None:
            calls.committed(attempt)
        else:
            calls.ended(end)
        return self._backlog.next()
