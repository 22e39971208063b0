"""The worker of one database in a child process, as the child's parent sees it."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sqla_jobs.execution.shared_memory import Entry, StartedRuns
from sqla_jobs.queries.values import Lease, RunEnd
from sqla_jobs.rules.outcomes import Failure, Outcome
from sqla_jobs.supervisor.heartbeat import AbandonedWork
from sqla_jobs.supervisor.messages import Of, Shard

if TYPE_CHECKING:
    from sqla_jobs.supervisor.child import ChildProcess


class ChildWorker:
    """A child's row in one database, and the runs that the child has started there."""

    def __init__(self, child: ChildProcess, shard: Shard, started: StartedRuns) -> None:
        self.child = child
        self.shard = shard
        self.started: StartedRuns = started
        self.process_id: uuid.UUID | None = None
        """The id of the row, while the parent sends heartbeats for it."""
        self.has_left = False
        """True once the child is deleting its row and about to end."""
        self._suspects: set[tuple[int, float]] = set()
        self._condemned: dict[int, float] = {}
        """By run id, when somebody requested to kill the process if that run does not stop."""

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def silence(self) -> float:
        """Seconds since the child made any progress."""
        return self.child.silence

    def send(self, message: object) -> None:
        """Send a message. Do nothing if the child is gone."""
        self.child.send(Of(self.shard, message))

    def hint(self, message: object) -> None:
        """Send a message unless sending it may block. The next poll makes up for an unsent message."""
        self.child.hint(Of(self.shard, message))

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
        entries = list(self.entries()) if self.child.watched_for(kill_after) else []
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
        killed = self.child.killed
        if killed is not None and killed.silence is not None:
            hung = f"process {self.pid} made no progress for {killed.silence:.0f} s and was killed"
            return Outcome.lost(Failure("Lost", f"{hung}; --hung-after sets the longest time without progress"))
        if entry.run_id in self._condemned:
            stopped = f"was cancelled and did not stop, so its process {self.pid} was killed"
            return Outcome.lost(Failure("Cancel", stopped))
        if killed is None or (self.shard.name, entry.run_id) not in killed.overdue or not entry.deadline:
            return Outcome.lost(Failure("Lost", f"process {self.pid} {self.child.how_it_ended()} before the job ended"))
        timeout = round(entry.deadline - entry.started_at, 2)  # the run began a moment before its deadline was set
        said = f"ran longer than its timeout of {timeout:g} s and could not be interrupted, so its process was killed"
        failure = Failure("TimeoutError", said)
        return Outcome.failed(failure) if entry.delay is None else Outcome.retried(entry.delay, failure)
