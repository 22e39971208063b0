"""Looks at what runs here: interrupts what takes longer than its timeout, and tells where slow runs are."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Mapping

from sqla_jobs.execution.attempt import Attempt
from sqla_jobs.execution.interrupt import TimedOut
from sqla_jobs.rules.error_text import stack_of
from sqla_jobs.rules.wording import plural

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_LOOK, _LOOK_IDLE = 0.1, 0.25


class Watchdog:
    """Looks ten times a second, where anything runs, at what each thread is at work on.

    A run that takes longer than `slow_after` seconds has its stack logged, and again each time that doubles;
    setting `stacks_wanted` logs those of all runs.
    """

    def __init__(self, at_work: Mapping[int, Attempt], slow_after: float) -> None:
        self._at_work = at_work
        self._slow_after = slow_after
        self._report_after: dict[int, float] = {}
        self.stacks_wanted: bool = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sqla_jobs-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stop.wait(_LOOK if self._at_work else _LOOK_IDLE):
            running = {held.job.run_id: held for held in list(self._at_work.values()) if held.is_running}
            for held in running.values():
                if held.deadline is not None and time.monotonic() > held.deadline:
                    held.interrupt(TimedOut)
            self._report(running)

    def _report(self, running: dict[int, Attempt]) -> None:
        wanted, self.stacks_wanted = self.stacks_wanted, False
        if wanted:
            log.warning("%s running here", plural(len(running), "job"))
        after = {run_id: self._report_after.get(run_id, self._slow_after) for run_id in running}
        for run_id, held in running.items():
            seconds = time.monotonic() - (held.started_at or 0.0)
            is_slow = seconds > after[run_id]
            if is_slow:
                after[run_id] = 2 * seconds
            if is_slow or wanted:
                _log_stack(held, seconds)
        self._report_after = after


def _log_stack(held: Attempt, seconds: float) -> None:
    frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
    frame = frames.get(held.body.thread) if held.body else None
    stack = stack_of(frame) if frame is not None else "its thread has ended"
    job = held.job
    log.warning(
        "job %s %s attempt %s has run for %.1f s and is here:\n%s", job.job_id, job.task, job.attempt, seconds, stack
    )
