"""The threads in which a worker runs its jobs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from sqla_jobs.execution.attempt import Attempt
from sqla_jobs.queries import RunEnd
from sqla_jobs.rules.outcomes import Failure, Outcome
from sqla_jobs.worker.backlog import Backlog
from sqla_jobs.worker.watchdog import Watchdog

log: logging.Logger = logging.getLogger("sqla_jobs.worker")


class RunnerThreads:
    """The threads of each lane, as many as its concurrency. Each runs one job after another."""

    def __init__(self, lanes: Sequence[Backlog], slow_after: float) -> None:
        self._lanes = lanes
        self._threads: list[threading.Thread] = []
        self._at_work: dict[int, Attempt] = {}
        """What each thread runs."""
        self._watchdog = Watchdog(self._at_work, slow_after)

    def start(
        self,
        execute: Callable[[Attempt], RunEnd | None],
        *,
        ended: Callable[[Attempt, RunEnd | None], None],
        has_room: Callable[[], None],
        is_free: Callable[[], None],
    ) -> None:
        """Start. `ended` gets each job with what `execute` returned; `has_room` asks to claim more.

        `is_free` tells that a thread is free, if jobs may wait for one behind gates.
        """
        self._execute, self._ended, self._has_room, self._is_free = execute, ended, has_room, is_free
        self._watchdog.start()
        for lane in self._lanes:
            for number in range(lane.concurrency):
                name = f"sqla_jobs-{lane.name}-{number}"
                self._threads.append(threading.Thread(target=self._work, args=(lane,), name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    def wait(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for all threads to end. After that no job is interrupted any more."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._watchdog.stop()

    @property
    def running(self) -> list[Attempt]:
        """The attempts that run now."""
        return [held for held in list(self._at_work.values()) if held.is_running]

    def show_stacks(self) -> None:
        """Have the watchdog log where each running job is."""
        self._watchdog.stacks_wanted = True

    def _work(self, lane: Backlog) -> None:
        thread = threading.get_ident()
        while (held := lane.take()) is not None:
            self._at_work[thread] = held
            try:
                end = self._execute(held)
            except BaseException as error:
                log.exception("running job %s failed inside the library", held.job.job_id)
                end = held.ended(Outcome.failed(Failure.of(error)))
            held.conclude()
            del self._at_work[thread]
            self._ended(held, end)
            if lane.through():
                self._has_room()
            if lane.is_wanted:
                self._is_free()
