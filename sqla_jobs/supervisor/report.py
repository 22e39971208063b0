"""What a parent tells of itself and its children. Any thread may ask."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from sqla_jobs.rules.wording import duration

if TYPE_CHECKING:
    from sqla_jobs.supervisor.child import ChildProcess
    from sqla_jobs.supervisor.roster import Roster

_STUCK = 10.0
"""Seconds without a turn of the main loop, which turns ten times a second, after which it is stuck."""


class Report:
    """Written by the parent's main thread."""

    def __init__(self, children: Roster) -> None:
        self._children = children
        self._turned_at = time.monotonic()
        self.lease = math.inf
        """Seconds; known once a child has told what its application says about options."""

    def turned(self) -> None:
        """The main loop goes round."""
        self._turned_at = time.monotonic()

    def why_not_alive(self) -> str | None:
        """Why the process should be restarted; `None` while its main loop turns."""
        since = time.monotonic() - self._turned_at
        return f"the main loop has not turned for {duration(since)}" if since > _STUCK else None

    def why_not_ready(self) -> str | None:
        """Why no child takes new jobs; `None` if one does, and its last heartbeat is less than half a lease old."""
        registered = [child for child in self._children if child.process_id is not None]
        if not registered:
            return "no worker process is registered in the database"
        children = [child for child in registered if not child.is_leaving]
        if not children:
            return "no worker process takes jobs: all of them are stopping"
        reasons = {child.pid: self._why_idle(child) for child in children}
        if None in reasons.values():
            return None
        return "\n".join(f"process {pid}: {why}" for pid, why in reasons.items())

    def _why_idle(self, child: ChildProcess) -> str | None:
        if child.is_hung:
            return f"it has made no progress for {duration(child.silence)}"
        age = time.monotonic() - child.started.beat_at
        if age >= self.lease / 2:
            return f"its last heartbeat was stored {duration(age)} ago"
        if child.observed.trouble is not None:
            return f"it cannot claim: {child.observed.trouble}"
        return None
