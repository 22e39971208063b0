"""A process's started runs, in memory that its parent can read even after the process has died."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue

_PLACES = 10_000
"""The maximum number of started runs whose ends are not yet stored. Any further run waits until an end is stored."""
_NEVER = -1.0


class _Run(ctypes.Structure):
    _fields_ = (
        ("job_id", ctypes.c_int64),
        ("claimed_at", ctypes.c_double),
        ("started_at", ctypes.c_double),
        ("deadline", ctypes.c_double),
        ("timeout", ctypes.c_double),
        ("delay", ctypes.c_double),
        ("run_id", ctypes.c_int64),
    )


class Memory(ctypes.Structure):
    """The memory that a process shares with its parent. It needs no lock: each number has only one writer."""

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
    """A run that has begun. Times are from `time.monotonic()`, which all processes on a host share."""

    job_id: int
    claimed_at: float
    started_at: float
    deadline: float
    """0 if there is no deadline; infinite while only the library's code runs, and after the end of the task's code."""
    timeout: float
    """The task's timeout in seconds, as declared or given. Without meaning if there is no deadline."""
    delay: float | None
    """Seconds until the next attempt if this one exceeds its deadline. `None` if this is the last attempt."""
    run_id: int


class RunSlot:
    """One run's place in the shared memory."""

    __slots__ = ("_run", "_started")

    def __init__(self, started: StartedRuns, run: _Run) -> None:
        self._started = started
        self._run = run

    def begin(self, job_id: int, run_id: int, claimed_at: float, started_at: float) -> None:
        """Publish that the run begins. From now on the run counts as an attempt, even if the process dies.

        The run id is written last and makes the entry valid. The process then checks whether the run may begin: see
        `StartedRuns.revoke`.
        """
        run = self._run
        run.job_id, run.claimed_at, run.started_at = job_id, claimed_at, started_at
        run.deadline, run.delay = 0.0, _NEVER
        run.run_id = run_id

    def expire(self, deadline: float, timeout: float, delay: float | None) -> None:
        """Allow the parent to kill the process after `deadline`, which the task's `timeout` has set.

        The run is then retried after `delay`, or never.
        """
        self._run.timeout = timeout
        self._run.delay = _NEVER if delay is None else delay
        self._run.deadline = deadline

    def suspend(self) -> None:
        """Forbid the parent to kill the process for this run, until `resume` is called."""
        self._run.deadline = math.inf

    def resume(self, deadline: float | None) -> None:
        """Allow the parent to kill the process after `deadline`, if there is one."""
        self._run.deadline = deadline or 0.0

    @property
    def revoked_at(self) -> float:
        """Jobs that were claimed before this time may not begin."""
        return self._started.revoked_at

    def clear(self) -> None:
        """Free the place, because the end is stored or the run did not begin after all."""
        self._run.run_id = 0
        self._started.free(self)


class StartedRuns:
    """The entries of started runs, written by one process and read by its parent."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        words = memoryview(memory).cast("B")[Memory.runs.offset :].cast("q")
        self._run_ids = words[_Run.run_id.offset // 8 :: ctypes.sizeof(_Run) // 8]
        self._unused = iter(range(_PLACES))
        self._free: SimpleQueue[RunSlot] = SimpleQueue()

    def free(self, slot: RunSlot) -> None:
        """Make the place available for another run."""
        self._free.put(slot)

    def take(self) -> RunSlot:
        """Take a place for a run, waiting until one is free."""
        if self._free.empty() and (place := next(self._unused, None)) is not None:
            return RunSlot(self, self._memory.runs[place])
        return self._free.get()

    def entries(self) -> Iterator[Entry]:
        """Yield the started runs whose ends may not have been stored yet."""
        for place, run_id in enumerate(self._run_ids.tolist()):
            if run_id:
                run = self._memory.runs[place]
                delay = None if run.delay == _NEVER else run.delay
                yield Entry(run.job_id, run.claimed_at, run.started_at, run.deadline, run.timeout, delay, run_id)

    def revoke(self, moment: float) -> None:
        """Forbid jobs that were claimed before `moment` to begin. Only the parent calls this.

        The process first publishes that a run begins and then reads this time. The parent first writes this time and
        then looks for started runs. So at least one of the two processes sees what the other has written.
        """
        self._memory.revoked_at = moment

    @property
    def revoked_at(self) -> float:
        """Jobs that were claimed before this time may not begin."""
        return float(self._memory.revoked_at)

    @property
    def beat_at(self) -> float:
        """When the process's last heartbeat was stored in the database. Written by the parent."""
        return float(self._memory.beat_at)

    @beat_at.setter
    def beat_at(self, moment: float) -> None:
        self._memory.beat_at = moment

    @property
    def alive_at(self) -> float:
        """When the process last executed Python code. Written by the process, twice a second."""
        return float(self._memory.alive_at)

    @alive_at.setter
    def alive_at(self, moment: float) -> None:
        self._memory.alive_at = moment

    @property
    def has_free_slot(self) -> bool:
        """True if one of the process's slots is waiting for a job. Written by the process, at least twice a second."""
        return bool(self._memory.has_free_slot)

    @has_free_slot.setter
    def has_free_slot(self, is_one: bool) -> None:
        self._memory.has_free_slot = is_one

    @property
    def workers(self) -> int:
        """The number of workers that share this process's queues, at least one. Written by the parent."""
        return max(1, int(self._memory.workers))

    @workers.setter
    def workers(self, number: int) -> None:
        self._memory.workers = number

    @property
    def has_limits(self) -> bool:
        """True if the limits table has rows, or a queued job has gates. Written by the parent."""
        return bool(self._memory.has_limits)

    @has_limits.setter
    def has_limits(self, are_there: bool) -> None:
        self._memory.has_limits = are_there

    @property
    def vitals(self) -> tuple[int, int]:
        """The number of runs that the process has ended, and its peak memory in bytes. Written by the process."""
        return self._memory.ended_runs, self._memory.peak_memory

    @vitals.setter
    def vitals(self, vitals: tuple[int, int]) -> None:
        self._memory.ended_runs, self._memory.peak_memory = vitals
