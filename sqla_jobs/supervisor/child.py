"""A worker process, as its parent sees it."""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from sqla_jobs.execution.shared_memory import Entry, StartedRuns
from sqla_jobs.queries.values import Lease, RunEnd
from sqla_jobs.rules.outcomes import Failure, Outcome
from sqla_jobs.supervisor.heartbeat import AbandonedWork
from sqla_jobs.supervisor.messages import Registered, Stop, ToParent, keeps_up, received
from sqla_jobs.supervisor.options import AWAY, Application
from sqla_jobs.supervisor.spawning import spawn

log: logging.Logger = logging.getLogger("sqla_jobs.worker")


class Killed(NamedTuple):
    """Why a child was killed. See `ChildProcess.kill`."""

    overdue: Collection[int]
    """The run ids of the runs that did not end in time."""
    silence: float | None


class ChildProcess:
    """A child process, started on creation. It loads `application` and then asks the parent for its spec."""

    process: subprocess.Popen[bytes]
    pipe: Any

    def __init__(self, application: Application, number: int) -> None:
        self.process, self.pipe, memory = spawn(application)
        self._received = bytearray()
        self.number = number
        self.started: StartedRuns = StartedRuns(memory)
        """The runs that the child has started."""
        self.process_id: uuid.UUID | None = None
        """The id of the child's row, while the parent sends heartbeats for it."""
        self.has_left = False
        """True once the child is deleting its row and about to end."""
        self._suspects: set[tuple[int, float]] = set()
        self._condemned: dict[int, float] = {}
        """By run id, when somebody requested to kill the process if that run does not stop."""
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

    @property
    def is_registered(self) -> bool:
        """True while the parent sends heartbeats for the child."""
        return self.process_id is not None

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
                if isinstance(message, Registered):
                    self.process_id = message.process_id
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

    def kill(self, why: str, *, overdue: Collection[int] = (), silence: float | None = None) -> None:
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
        return ", ".join(f"job {entry.job_id}" for entry in self.entries()) or "no job that has begun"

    def watched_for(self, seconds: float) -> bool:
        """Return whether the child has been watched for longer than this, without a delay of the parent."""
        return time.monotonic() - self._watched_since > seconds

    def how_it_ended(self) -> str:
        """Return how the process ended, in words."""
        return _how(self.process.returncode)

    def entries(self) -> Iterator[Entry]:
        """Yield the started runs whose ends may not have been stored yet."""
        return self.started.entries()

    def revoke(self) -> list[int]:
        """Forbid the child to begin jobs that it holds. Return the run ids of the jobs that have begun.

        The child may have published a start before it could see the revocation. A short pause makes that visible.
        """
        self.started.revoke(time.monotonic())
        time.sleep(0.01)
        return [entry.run_id for entry in self.entries()]

    def condemn(self, run_id: int) -> None:
        """Kill the process later if this run does not stop: somebody has requested that."""
        self._condemned.setdefault(run_id, time.monotonic())

    def overdue(self, kill_after: float, since: float) -> list[Entry]:
        """Return the runs that have not ended `kill_after` seconds after their deadline or a request to kill.

        A run is returned only if two successive calls find it: an entry may change while it is read. `since` is the
        number of seconds since the last call.
        """
        now = time.monotonic()
        entries = list(self.entries()) if self.watched_for(kill_after) else []
        for entry in entries:
            if entry.deadline == math.inf and entry.run_id in self._condemned:  # the time does not count meanwhile
                self._condemned[entry.run_id] += since
        late = [one for one in entries if now > self._deadline_of(one) + kill_after]
        seen, self._suspects = self._suspects, {(entry.run_id, entry.deadline) for entry in late}
        return [entry for entry in late if (entry.run_id, entry.deadline) in seen]

    def _deadline_of(self, entry: Entry) -> float:
        if entry.deadline == math.inf:
            return math.inf
        return min(entry.deadline or math.inf, self._condemned.get(entry.run_id, math.inf))

    def abandoned(self) -> AbandonedWork | None:
        """Return the work that the process left behind when it died. Return None if the process never registered."""
        if self.process_id is None:
            return None
        return AbandonedWork(self.process_id, [self._end(entry, self.process_id) for entry in self.entries()])

    def _end(self, entry: Entry, process_id: uuid.UUID) -> RunEnd:
        ended_at = time.monotonic() - entry.claimed_at
        lease = Lease(entry.job_id, entry.run_id, process_id)
        return RunEnd(lease, self._outcome(entry), entry.started_at - entry.claimed_at, ended_at)

    def _outcome(self, entry: Entry) -> Outcome:
        killed = self.killed
        if killed is not None and killed.silence is not None:
            hung = f"process {self.pid} made no progress for {killed.silence:.0f} s and was killed"
            return Outcome.lost(Failure("Lost", f"{hung}; --hung-after sets the longest time without progress"))
        if entry.run_id in self._condemned:
            stopped = f"was cancelled and did not stop, so its process {self.pid} was killed"
            return Outcome.lost(Failure("Cancel", stopped))
        if killed is None or entry.run_id not in killed.overdue or not entry.deadline:
            return Outcome.lost(Failure("Lost", f"process {self.pid} {self.how_it_ended()} before the job ended"))
        said = f"ran longer than its timeout of {entry.timeout:g} s and could not be interrupted"
        failure = Failure("TimeoutError", f"{said}, so its process was killed")
        return Outcome.failed(failure) if entry.delay is None else Outcome.retried(entry.delay, failure)


def _how(code: int | None) -> str:
    if code == AWAY:
        return "could not reach its database"
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {signal.Signals(-code).name}" if -code in list(signal.Signals) else f"died of signal {-code}"
