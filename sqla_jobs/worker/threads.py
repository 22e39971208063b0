"""The threads in which a queue's plain tasks run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from sqla_jobs.execution.held_job import Attempt
from sqla_jobs.rules.every import Every

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_WARN_AGAIN = 60.0
"""Seconds between warnings that a thread could not be started."""
_SHORT = "queue %s runs with only %d threads, and tries every second to start another: %s; ulimit -u may be too low"


class Threads:
    """Threads that are started on demand, up to `most` of them. Each thread runs one job after another."""

    def __init__(self, name: str, most: int, work: Callable[[Attempt], None]) -> None:
        """Prepare threads. `work` runs a job, and then further jobs while there are any for its thread."""
        self._name = name
        self._most = most
        self._work = work
        self._lock = threading.Lock()
        self._inbox: SimpleQueue[Attempt | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._warning = Every(_WARN_AGAIN)
        self._idle = 0
        """The number of waiting threads, minus the number of jobs that are queued for a thread."""

    def begin(self, attempt: Attempt) -> bool:
        """Run a job in a waiting thread, or in a new one. Return False if the system allows no more threads."""
        with self._lock:
            if self._idle <= 0 and len(self._threads) < self._most:
                return self._can_start(attempt)
            self._idle -= 1
        self._inbox.put(attempt)
        return True

    def _can_start(self, attempt: Attempt) -> bool:
        """Start a thread with a job. Return False if the system allows no more threads."""
        name = f"sqla_jobs-{self._name}-{len(self._threads)}"
        thread = threading.Thread(target=self._loop, args=(attempt,), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            level = logging.WARNING if self._warning.is_over() else logging.DEBUG
            log.log(level, _SHORT, self._name, len(self._threads), error)
            return False
        self._threads.append(thread)
        return True

    def close(self) -> None:
        """End each thread after its current job."""
        for _ in self._threads:
            self._inbox.put(None)

    def join(self, deadline: float) -> None:
        """Wait until all threads have ended, or until `deadline`, by `time.monotonic()`."""
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _loop(self, attempt: Attempt | None) -> None:
        while attempt is not None:
            self._work(attempt)
            with self._lock:
                self._idle += 1
            attempt = self._inbox.get()
