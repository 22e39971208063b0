"""All children of a parent. Only its main thread adds and removes them; other threads read."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

from sqla_jobs.supervisor.child import ChildProcess
from sqla_jobs.supervisor.messages import Gone
from sqla_jobs.supervisor.slot import Slot


class Roster:
    """The children that hold a slot, their successors, and the replaced ones that have not ended."""

    def __init__(self) -> None:
        self.slots: list[Slot] = [Slot(1)]
        self._leaving: list[ChildProcess] = []

    def __iter__(self) -> Iterator[ChildProcess]:
        for slot in self.slots:
            yield from slot.children
        yield from list(self._leaving)

    def make_room(self, processes: int) -> None:
        """Add slots up to that number."""
        self.slots += map(Slot, range(len(self.slots) + 1, processes + 1))

    @property
    def is_changing(self) -> bool:
        """Whether one is about to take another's place."""
        return bool(self._leaving) or any(slot.successor for slot in self.slots)

    def take_over(self, child: ChildProcess) -> ChildProcess | None:
        """A child is ready: if it is a successor it takes its slot. Returns the child that it replaces."""
        for slot in self.slots:
            if slot.successor is child and (old := slot.succeed()) is not None:
                self._leaving.append(old)
                return old
        return None

    def vacated(self, child: ChildProcess) -> Slot | None:
        """The slot of a child that ended. None if another child has taken it."""
        if child in self._leaving:
            self._leaving.remove(child)
            return None
        return next(slot for slot in self.slots if child in slot.children)

    def finished(self, child: ChildProcess) -> None:
        """The child has drained its queues: its slot stays empty, unless the child was asked to stop."""
        for slot in self.slots:
            slot.is_done = slot.is_done or (slot.child is child and not child.is_leaving)

    def living(self) -> list[uuid.UUID]:
        """The process ids of all registered children."""
        return [child.process_id for child in self if child.process_id is not None]

    def claiming(self) -> list[ChildProcess]:
        """The children that may take new jobs."""
        return [child for child in self if child.process_id is not None and not child.is_leaving | child.is_hung]

    def hung(self) -> list[ChildProcess]:
        """The children that make no progress."""
        return [child for child in self if child.is_hung]

    def gone(self, process_id: uuid.UUID) -> None:
        """A process was taken for dead: tell its child."""
        for child in self:
            if child.process_id == process_id:
                child.process_id = None
                child.send(Gone(process_id))

    def beaten(self, process_ids: set[uuid.UUID], moment: float) -> None:
        """The heartbeats of these processes were stored at `moment`."""
        for child in self:
            if child.process_id in process_ids:
                child.started.beat_at = max(child.started.beat_at, moment)
