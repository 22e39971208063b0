"""Decides which processes are dead, by the clock of the process that observes them."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping


class Sightings:
    """The times at which each process was first seen with its current heartbeat, by `time.monotonic()`.

    Only this process's own clock counts: the server's clock may be changed, and two servers' clocks differ.
    """

    due_at: float = math.inf
    """The next time at which a process will have been silent for its whole lease, if no new heartbeat comes."""

    def __init__(self) -> None:
        self._seen: dict[uuid.UUID, tuple[int, float]] = {}

    def forget(self) -> None:
        """Start over after the server was unavailable, since other processes could not store heartbeats either."""
        self._seen, self.due_at = {}, math.inf

    def silent(
        self, heartbeats: Mapping[uuid.UUID, tuple[int, float]], *, asked_at: float, answered_at: float
    ) -> dict[uuid.UUID, int]:
        """Return the processes that have had no new heartbeat for their whole lease, each with its heartbeat.

        `heartbeats` holds the heartbeat and the lease of each process. The silence of a process begins when the answer
        that first showed its current heartbeat has arrived. It ends when the current query is sent. So no silence is
        overestimated.
        """
        before = self._seen
        self._seen = {
            process_id: before[process_id]
            if process_id in before and before[process_id][0] == heartbeat
            else (heartbeat, answered_at)
            for process_id, (heartbeat, _) in heartbeats.items()
        }
        due_at = {process_id: self._seen[process_id][1] + lease for process_id, (_, lease) in heartbeats.items()}
        self.due_at = min((at for at in due_at.values() if at > asked_at), default=math.inf)
        return {process_id: heartbeats[process_id][0] for process_id, at in due_at.items() if at <= asked_at}
