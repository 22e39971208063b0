"""What a process has started, in memory that its parent can read after it died."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

_HEADER = struct.Struct("dqqdd")
_MOMENT, _VITALS = struct.Struct("d"), struct.Struct("qq")
_VITALS_AT, _ALIVE_AT, _REVOKED_AT = 8, 24, 32
_BEGUN, _DUE, _RUN_ID = struct.Struct("qdd"), struct.Struct("dd"), struct.Struct("q")
_ENTRY = struct.Struct("qddddq")
_PLACES = 10_000
"""Runs begun whose ends are not stored yet. One more waits: storing ends is what makes room."""
_NEVER = -1.0

MEMORY = _HEADER.size + _PLACES * _ENTRY.size
"""Bytes that the slots of one process take."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A run that was begun; moments by `time.monotonic()`, which all processes of a host share."""

    job_id: int
    claimed_at: float
    started_at: float
    deadline: float
    """0 where there is none, or it was kept."""
    delay: float | None
    """Seconds until the next attempt, should this one overrun its deadline; `None`: it was the last."""
    run_id: int


class RunSlot:
    """The slot of one run."""

    __slots__ = ("_at", "_memory", "_started")

    def __init__(self, started: StartedRuns, memory: Any, at: int) -> None:
        self._started = started
        self._memory = memory
        self._at = at

    def begin(self, job_id: int, run_id: int, claimed_at: float, started_at: float) -> None:
        """The run begins: from here on it is charged if the process dies. Its id is written last and makes it count.

        Whether it may is looked up after that: see `StartedRuns.revoke`.
        """
        _BEGUN.pack_into(self._memory, self._at, job_id, claimed_at, started_at)
        _DUE.pack_into(self._memory, self._at + _BEGUN.size, 0.0, _NEVER)
        _RUN_ID.pack_into(self._memory, self._at + _ENTRY.size - _RUN_ID.size, run_id)

    def expire(self, deadline: float, delay: float | None) -> None:
        """Past its deadline the process may be killed; the run is then tried again after `delay`, or never."""
        _DUE.pack_into(self._memory, self._at + _BEGUN.size, deadline, _NEVER if delay is None else delay)

    def end(self) -> None:
        """It is over, and its end not stored yet."""
        _DUE.pack_into(self._memory, self._at + _BEGUN.size, 0.0, _NEVER)

    @property
    def revoked_at(self) -> float:
        """What was claimed before this moment may not begin."""
        return self._started.revoked_at

    def clear(self) -> None:
        """Its end is stored, or it did not begin after all: the place is free for another run."""
        _RUN_ID.pack_into(self._memory, self._at + _ENTRY.size - _RUN_ID.size, 0)
        self._started.free(self)


class StartedRuns:
    """Written by one process and read by its parent; `memory` is a writable buffer of `MEMORY` bytes."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory
        self._run_ids = memoryview(memory).cast("B")[_HEADER.size :].cast("q")[5::6]
        self._free: SimpleQueue[RunSlot] = SimpleQueue()
        for place in range(_PLACES):
            self.free(RunSlot(self, memory, _HEADER.size + place * _ENTRY.size))

    def free(self, slot: RunSlot) -> None:
        """Let another run have the place."""
        self._free.put(slot)

    def take(self) -> RunSlot:
        """A place for a run; waits for one."""
        return self._free.get()

    def entries(self) -> Iterator[Entry]:
        """The runs that were begun, and whose ends may not be stored."""
        for place, run_id in enumerate(self._run_ids.tolist()):
            if run_id:
                found = _ENTRY.unpack_from(self._memory, _HEADER.size + place * _ENTRY.size)
                job_id, claimed_at, started_at, deadline, delay, _ = found
                yield Entry(job_id, claimed_at, started_at, deadline, None if delay == _NEVER else delay, run_id)

    def revoke(self, moment: float) -> None:
        """Let no job begin any more that was claimed before `moment`; the parent writes it.

        The process publishes that a run begins, and looks for this after that; the parent writes this, and
        looks for what has begun after that. So of the two one at least sees the other.
        """
        _MOMENT.pack_into(self._memory, _REVOKED_AT, moment)

    @property
    def revoked_at(self) -> float:
        """What was claimed before this moment may not begin."""
        return self._moment(_REVOKED_AT)

    @property
    def beat_at(self) -> float:
        """When the process last was shown to be alive in the database; the parent writes it."""
        return self._moment(0)

    @beat_at.setter
    def beat_at(self, moment: float) -> None:
        _MOMENT.pack_into(self._memory, 0, moment)

    @property
    def alive_at(self) -> float:
        """When Python code of the process last ran; the process writes it, twice a second."""
        return self._moment(_ALIVE_AT)

    @alive_at.setter
    def alive_at(self, moment: float) -> None:
        _MOMENT.pack_into(self._memory, _ALIVE_AT, moment)

    def _moment(self, at: int) -> float:
        return float(_MOMENT.unpack_from(self._memory, at)[0])

    @property
    def vitals(self) -> tuple[int, int]:
        """How many runs the process has ended, and its peak memory in bytes; the process writes them."""
        runs, memory = _VITALS.unpack_from(self._memory, _VITALS_AT)
        return runs, memory

    @vitals.setter
    def vitals(self, vitals: tuple[int, int]) -> None:
        _VITALS.pack_into(self._memory, _VITALS_AT, *vitals)
