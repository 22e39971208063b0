"""All children of a parent. Only its main thread changes who belongs; other threads ask."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

from sqla_jobs.supervisor.child import ChildProcess
from sqla_jobs.supervisor.messages import Gone
from sqla_jobs.supervisor.slot import Slot


class Roster:
    """Those that hold a slot or are about to, and those that another one has replaced."""

    def __init__(self) -> None:
        self.slots = [Slot(1)]
        self._leaving: list[ChildProcess] = []

    def __iter__(self) -> Iterator[ChildProcess]:
        for slot in self.slots:
            yield from slot.children
        yield from list(self._leaving)

    def make_room(self, processes: int) -> None:
        """Have that many slots."""
        self.slots += map(Slot, range(len(self.slots) + 1, processes + 1))

    @property
    def is_changing(self) -> bool:
        """Whether one is about to take another's place."""
        return bool(self._leaving) or any(slot.successor for slot in self.slots)

    def take_over(self, child: ChildProcess) -> ChildProcess | None:
        """A child is ready, and takes its slot if it is a successor. Returns whom it replaces."""
        for slot in self.slots:
            if slot.successor is child and (old := slot.succeed()) is not None:
                self._leaving.append(old)
                return old
        return None

    def vacated(self, child: ChildProcess) -> Slot | None:
        """The slot of a child that ended; `None` if another one had taken it."""
        if child in self._leaving:
            self._leaving.remove(child)
            return None
        return next(slot for slot in self.slots if child in slot.children)

    def finished(self, child: ChildProcess) -> None:
        """Nothing is left to do where this child is, unless it was asked to stop."""
        for slot in self.slots:
            slot.is_done = slot.is_done or (slot.child is child and not child.is_leaving)

    def living(self) -> list[uuid.UUID]:
        """The ids of their rows."""
        return [child.process_id for child in self if child.process_id is not None]

    def claiming(self) -> list[ChildProcess]:
        """Those that may take new jobs."""
        return [child for child in self if child.process_id is not None and not child.is_leaving | child.is_hung]

    def hung(self) -> list[ChildProcess]:
        """Those that make no progress."""
        return [child for child in self if child.is_hung]

    def gone(self, process_id: uuid.UUID) -> None:
        """This one was taken for dead."""
        for child in self:
            if child.process_id == process_id:
                child.process_id = None
                child.send(Gone(process_id))

    def beaten(self, process_ids: set[uuid.UUID], moment: float) -> None:
        """The server heard at that moment that these live."""
        for child in self:
            if child.process_id in process_ids:
                child.started.beat_at = max(child.started.beat_at, moment)
