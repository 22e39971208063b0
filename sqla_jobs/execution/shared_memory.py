"""What a process has started, in memory that its parent can read after it died."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue

_PLACES = 10_000
"""Runs begun whose ends are not stored yet. One more waits: storing ends is what makes room."""
_NEVER = -1.0


class _Run(ctypes.Structure):
    _fields_ = (
        ("job_id", ctypes.c_int64),
        ("claimed_at", ctypes.c_double),
        ("started_at", ctypes.c_double),
        ("deadline", ctypes.c_double),
        ("delay", ctypes.c_double),
        ("run_id", ctypes.c_int64),
    )


class Memory(ctypes.Structure):
    """What one process and its parent share. Without a lock: each number is written by one of the two."""

    _fields_ = (
        ("beat_at", ctypes.c_double),
        ("ended_runs", ctypes.c_int64),
        ("peak_memory", ctypes.c_int64),
        ("alive_at", ctypes.c_double),
        ("revoked_at", ctypes.c_double),
        ("has_free_slot", ctypes.c_int64),
        ("workers", ctypes.c_int64),
        ("has_limits", ctypes.c_int64),
        ("runs", _Run * _PLACES),
    )


@dataclass(frozen=True, slots=True)
class Entry:
    """A run that was begun; moments by `time.monotonic()`, which all processes of a host share."""

    job_id: int
    claimed_at: float
    started_at: float
    deadline: float
    """0 where there is none; infinite once the run is over."""
    delay: float | None
    """Seconds until the next attempt, should this one overrun its deadline; `None`: it was the last."""
    run_id: int


class RunSlot:
    """The slot of one run."""

    __slots__ = ("_run", "_started")

    def __init__(self, started: StartedRuns, run: _Run) -> None:
        self._started = started
        self._run = run

    def begin(self, job_id: int, run_id: int, claimed_at: float, started_at: float) -> None:
        """The run begins: from here on it is charged if the process dies. Its id is written last and makes it count.

        Whether it may is looked up after that: see `StartedRuns.revoke`.
        """
        run = self._run
        run.job_id, run.claimed_at, run.started_at = job_id, claimed_at, started_at
        run.deadline, run.delay = 0.0, _NEVER
        run.run_id = run_id

    def expire(self, deadline: float, delay: float | None) -> None:
        """Past its deadline the process may be killed; the run is then tried again after `delay`, or never."""
        self._run.delay = _NEVER if delay is None else delay
        self._run.deadline = deadline

    def end(self) -> None:
        """It is over, and its end not stored yet."""
        self._run.deadline = math.inf

    @property
    def revoked_at(self) -> float:
        """What was claimed before this moment may not begin."""
        return self._started.revoked_at

    def clear(self) -> None:
        """Its end is stored, or it did not begin after all: the place is free for another run."""
        self._run.run_id = 0
        self._started.free(self)


class StartedRuns:
    """Written by one process and read by its parent."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        words = memoryview(memory).cast("B")[Memory.runs.offset :].cast("q")
        self._run_ids = words[_Run.run_id.offset // 8 :: ctypes.sizeof(_Run) // 8]
        self._unused = iter(range(_PLACES))
        self._free: SimpleQueue[RunSlot] = SimpleQueue()

    def free(self, slot: RunSlot) -> None:
        """Let another run have the place."""
        self._free.put(slot)

    def take(self) -> RunSlot:
        """A place for a run; waits for one."""
        if self._free.empty() and (place := next(self._unused, None)) is not None:
            return RunSlot(self, self._memory.runs[place])
        return self._free.get()

    def entries(self) -> Iterator[Entry]:
        """The runs that were begun, and whose ends may not be stored."""
        for place, run_id in enumerate(self._run_ids.tolist()):
            if run_id:
                run = self._memory.runs[place]
                delay = None if run.delay == _NEVER else run.delay
                yield Entry(run.job_id, run.claimed_at, run.started_at, run.deadline, delay, run_id)

    def revoke(self, moment: float) -> None:
        """Let no job begin any more that was claimed before `moment`; the parent writes it.

        The process publishes that a run begins, and looks for this after that; the parent writes this, and
        looks for what has begun after that. So of the two one at least sees the other.
        """
        self._memory.revoked_at = moment

    @property
    def revoked_at(self) -> float:
        """What was claimed before this moment may not begin."""
        return float(self._memory.revoked_at)

    @property
    def beat_at(self) -> float:
        """When the process last was shown to be alive in the database; the parent writes it."""
        return float(self._memory.beat_at)

    @beat_at.setter
    def beat_at(self, moment: float) -> None:
        self._memory.beat_at = moment

    @property
    def alive_at(self) -> float:
        """When Python code of the process last ran; the process writes it, twice a second."""
        return float(self._memory.alive_at)

    @alive_at.setter
    def alive_at(self, moment: float) -> None:
        self._memory.alive_at = moment

    @property
    def has_free_slot(self) -> bool:
        """Whether a slot of the process waits for a job; the process writes it, at least twice a second."""
        return bool(self._memory.has_free_slot)

    @has_free_slot.setter
    def has_free_slot(self, is_one: bool) -> None:
        self._memory.has_free_slot = is_one

    @property
    def workers(self) -> int:
        """How many workers share its queues, at least one; the parent writes it."""
        return max(1, int(self._memory.workers))

    @workers.setter
    def workers(self, number: int) -> None:
        self._memory.workers = number

    @property
    def has_limits(self) -> bool:
        """Whether there are rows of limits; the parent writes it."""
        return bool(self._memory.has_limits)

    @has_limits.setter
    def has_limits(self, are_there: bool) -> None:
        self._memory.has_limits = are_there

    @property
    def vitals(self) -> tuple[int, int]:
        """How many runs the process has ended, and its peak memory in bytes; the process writes them."""
        return self._memory.ended_runs, self._memory.peak_memory

    @vitals.setter
    def vitals(self, vitals: tuple[int, int]) -> None:
        self._memory.ended_runs, self._memory.peak_memory = vitals
