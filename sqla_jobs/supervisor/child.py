"""A worker process, as its parent sees it."""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from sqla_jobs.execution.shared_memory import StartedRuns
from sqla_jobs.supervisor.child_worker import ChildWorker
from sqla_jobs.supervisor.messages import Of, Registered, Shard, Stop, ToParent, keeps_up, received
from sqla_jobs.supervisor.spawning import spawn
from sqla_jobs.supervisor.spec import Application

log: logging.Logger = logging.getLogger("sqla_jobs.worker")


class Killed(NamedTuple):
    """Why a child was killed. See `ChildProcess.kill`."""

    overdue: Collection[tuple[str, int]]
    """The names of the databases and the run ids of the runs that did not end in time."""
    silence: float | None


class ChildProcess:
    """A child process, started on creation. It loads `application` and then asks the parent for its spec."""

    process: subprocess.Popen[bytes]
    pipe: Any

    def __init__(self, application: Application, number: int) -> None:
        self.process, self.pipe, self._memories = spawn(application)
        self._received = bytearray()
        self.number = number
        self.started: StartedRuns = StartedRuns(self._memories[0])
        """The runs of the first worker, and what concerns the whole process."""
        self.workers: dict[str, ChildWorker] = {}
        """The child's workers by the names of their databases. A single database has no name."""
        self.ready_at: float | None = None
        self.kill_at: float = math.inf
        self.is_hung = False
        """True if the parent has found that the child makes no progress.

        Jobs that the child has not begun are then given back.
        """
        self.trouble: str | None = None
        """The reason why the child cannot claim, according to its last report."""
        self.started_at: float = time.monotonic()
        self.killed: Killed | None = None
        """Why the child was killed, if it was."""
        self._watched_since = self.started_at
        self._sending = threading.Lock()

    def worker(self, shard: Shard) -> ChildWorker:
        """Return the child's worker of this database. The first call creates it."""
        if shard.name not in self.workers:
            started = StartedRuns(self._memories[shard.number]) if shard.number else self.started
            self.workers[shard.name] = ChildWorker(self, shard, started)
        return self.workers[shard.name]

    @property
    def is_registered(self) -> bool:
        """True while the parent sends heartbeats for the child."""
        return any(worker.process_id is not None for worker in [*self.workers.values()])

    @property
    def has_left(self) -> bool:
        """True once the child is deleting its rows and about to end."""
        return any(worker.has_left for worker in [*self.workers.values()])

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        """True until the process has ended."""
        return self.process.poll() is None

    @property
    def is_leaving(self) -> bool:
        """True if the child was asked to stop."""
        return self.kill_at < math.inf

    def messages(self) -> Iterator[ToParent]:
        """Yield the messages that have arrived. Close the pipe if the child has closed it."""
        try:
            for message in received(self.pipe, self._received):
                if isinstance(message, Of) and isinstance(message.message, Registered):
                    self.worker(message.shard).process_id = message.message.process_id
                    self.ready_at = self.ready_at or time.monotonic()
                yield message
        except (EOFError, OSError):
            with self._sending:  # close it only under this lock: another thread may be about to write
                self.pipe.close()
            self.must_end(10)  # the child is about to end, or cannot be reached

    def send(self, message: object) -> None:
        """Send a message. Do nothing if the child is gone."""
        with self._sending, suppress(OSError):  # `messages` will notice that the child is gone
            if not self.pipe.closed:
                self.pipe.send(message)

    def hint(self, message: object) -> None:
        """Send a message unless sending it may block. The next poll makes up for an unsent message."""
        with self._sending, suppress(OSError):
            if not self.pipe.closed and keeps_up(self.pipe):
                self.pipe.send(message)

    def must_end(self, within: float) -> None:
        """Kill the child if it is still running after `within` seconds."""
        self.kill_at = min(self.kill_at, time.monotonic() + within)

    def ask_to_stop(self, within: float) -> None:
        """Ask the child to end. The child is killed if it is still running after `within` seconds."""
        self.kill_at = time.monotonic() + within
        if self.ready_at is None:
            self.process.terminate()
        else:
            self.send(Stop())

    def show_stacks(self) -> None:
        """Make the child log the stacks of its jobs."""
        if self.ready_at is not None and self.is_alive:
            os.kill(self.pid, signal.SIGUSR1)

    def kill(self, why: str, *, overdue: Collection[tuple[str, int]] = (), silence: float | None = None) -> None:
        """Kill the child and log the reason, once. `overdue` are the runs that did not end in time, as in `Killed`.

        `silence` is the number of seconds without progress, if the child is killed for that.
        """
        if self.killed is None:
            self.killed = Killed(overdue, silence)
            log.error("process %d is killed: %s", self.pid, why)
            self.process.kill()

    def watch_anew(self) -> None:
        """Measure the child's silence only from now on: the parent was delayed, and perhaps the child was too."""
        self._watched_since = time.monotonic()

    @property
    def silence(self) -> float:
        """Seconds since the child last executed Python code, or since `watch_anew` if that was later."""
        return time.monotonic() - max(self.started.alive_at, self._watched_since)

    @property
    def work(self) -> str:
        """The jobs that the child has begun, in words."""
        jobs = [f"job {entry.job_id}" for worker in [*self.workers.values()] for entry in worker.entries()]
        return ", ".join(jobs) or "no job that has begun"

    def watched_for(self, seconds: float) -> bool:
        """Return whether the child has been watched for longer than this, without a delay of the parent."""
        return time.monotonic() - self._watched_since > seconds

    def how_it_ended(self) -> str:
        """Return how the process ended, in words."""
        return _how(self.process.returncode)


def _how(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {signal.Signals(-code).name}" if -code in list(signal.Signals) else f"died of signal {-code}"
