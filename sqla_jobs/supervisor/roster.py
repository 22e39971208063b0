"""The children of one database and the slots that they hold. Only the main thread changes them."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Iterator

from sqla_jobs.supervisor.child import ChildProcess
from sqla_jobs.supervisor.messages import Gone

_HEALTHY = 60.0
"""If a child was ready for more than this many seconds, its failure counts as a first failure again."""
_MAX_BACKOFF = 30.0


class Slot:
    """A place for one child at a time, and for its successor."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.child: ChildProcess | None = None
        self.successor: ChildProcess | None = None
        """A child that is starting. It takes over once it is ready."""
        self.start_at: float = 0.0
        """The earliest time to start a child here, by `time.monotonic()`."""
        self._failures = 0

    @property
    def children(self) -> Iterator[ChildProcess]:
        """Iterate over the children here: the child that holds the slot, and the successor."""
        return (child for child in (self.child, self.successor) if child is not None)

    @property
    def is_vacant(self) -> bool:
        """True if a child should be started here now."""
        return self.child is None and time.monotonic() >= self.start_at

    def succeed(self) -> ChildProcess | None:
        """Make the successor the holder. Return the previous holder."""
        old, self.child, self.successor = self.child, self.successor, None
        return old

    def hold_back(self, failed: ChildProcess | None) -> float:
        """Delay the start of the next child. The delay grows with each failure. Return it, in seconds.

        `failed` is None if no child could be started.
        """
        now = time.monotonic()
        is_new = failed is not None and failed.ready_at is not None and now - failed.ready_at > _HEALTHY
        self._failures = 1 if is_new else self._failures + 1
        seconds = 0.0 if self._failures == 1 else min(_MAX_BACKOFF, 0.25 * 2**self._failures)
        seconds *= random.uniform(0.75, 1.25)  # noqa: S311 - keeps children from starting all at once
        self.start_at = now + seconds
        return seconds


class Roster:
    """The children that hold a slot, their successors, and others that have not ended: replaced, or without work."""

    def __init__(self) -> None:
        self.slots: list[Slot] = [Slot(1)]
        self._leaving: list[ChildProcess] = []

    def __iter__(self) -> Iterator[ChildProcess]:
        for slot in list(self.slots):
            yield from slot.children
        yield from list(self._leaving)

    def make_room(self, processes: int) -> None:
        """Add slots, up to `processes` in total."""
        self.slots.extend(map(Slot, range(len(self.slots) + 1, processes + 1)))

    @property
    def is_changing(self) -> bool:
        """True while a child is being replaced, or ends without work."""
        return bool(self._leaving) or any(slot.successor for slot in self.slots)

    def take_over(self, child: ChildProcess) -> ChildProcess | None:
        """If `child` is a successor, let it take over its slot: it is ready. Return the replaced child, if any."""
        for slot in self.slots:
            if slot.successor is child and (old := slot.succeed()) is not None:
                self._leaving.append(old)
                return old
        return None

    def vacated(self, child: ChildProcess) -> Slot | None:
        """Return the slot of a child that ended. Return None if another child has taken the slot."""
        if child in self._leaving:
            self._leaving.remove(child)
            return None
        return next(slot for slot in self.slots if child in slot.children)

    def finished(self, child: ChildProcess) -> None:
        """Give up the slot of a child that has drained its queues."""
        for slot in [slot for slot in self.slots if slot.child is child]:
            self._leaving.extend(slot.children)
            self.slots.remove(slot)

    def retire(self) -> None:
        """Give up all slots. The children in them stay until they have ended."""
        for slot in self.slots:
            self._leaving.extend(slot.children)
        self.slots.clear()

    def claiming(self) -> list[ChildProcess]:
        """Return the children that may take new jobs."""
        return [child for child in self if child.is_registered and not child.is_leaving | child.is_hung]

    def hung(self) -> list[ChildProcess]:
        """Return the children that make no progress."""
        return [child for child in self if child.is_hung]

    def living(self) -> list[uuid.UUID]:
        """Return the process ids of all registered children."""
        return [process_id for child in self if (process_id := child.process_id) is not None]

    def gone(self, process_id: uuid.UUID) -> None:
        """Notify the child whose process was considered dead."""
        for child in self:
            if child.process_id == process_id:
                child.process_id = None
                child.send(Gone(process_id))

    def beaten(self, process_ids: set[uuid.UUID], moment: float) -> None:
        """Record that the heartbeats of these processes were stored at `moment`."""
        for child in self:
            if child.process_id in process_ids:
                child.started.beat_at = max(child.started.beat_at, moment)
