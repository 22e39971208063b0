"""Which processes are dead, as far as one of them can tell by its own clock: pure."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping


class Sightings:
    """When each process was first seen with the heartbeat that it has now.

    No clock but this process's own is asked: the server's may step, and two servers' differ. Moments are of
    `time.monotonic()`.
    """

    due_at: float = math.inf
    """When the next one may have been silent for its lease, unless it is heard of until then."""

    def __init__(self) -> None:
        self._seen: dict[uuid.UUID, tuple[int, float]] = {}

    def forget(self) -> None:
        """Begin anew: for a while the server could not be asked, nor could the others tell it that they live."""
        self._seen, self.due_at = {}, math.inf

    def silent(
        self, heartbeats: Mapping[uuid.UUID, tuple[int, float]], *, asked_at: float, answered_at: float
    ) -> dict[uuid.UUID, int]:
        """Of processes with these heartbeats and leases, those seen without a new one for their lease; and that one.

        It counts from the latest moment at which it can have been seen first to the earliest at which it was seen last.
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
