"""The jobs that one worker holds."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Generator, Iterable
from contextlib import contextmanager

from sqla_jobs.execution.held_job import Attempt
from sqla_jobs.queries import Claimed, RunEnd
from sqla_jobs.runtime.counters import Counters

_DOUBTFUL = 600.0
"""After a claim has failed, the server may still execute it for this many seconds."""


class Attempts:
    """A table of attempts by run id. It holds each attempt from its claim until its end is stored.

    The table has no lock: its reads and writes are single operations on a dictionary.
    """

    def __init__(self, heartbeat: float, counters: Counters) -> None:
        self._heartbeat = heartbeat
        self._counters = counters
        self.unknown_until: float = 0.0
        """Until this time, by `time.monotonic()`, the server may hold leases that are not in the table."""
        self.added_at: float = time.monotonic()
        """When a job was last added, by `time.monotonic()`."""
        self.runs: int = 0
        """The number of runs that have ended in this worker."""
        self.ended_at: float | None = None
        """When the last run ended, by `time.monotonic()`."""
        self._table: dict[int, Attempt] = {}
        self._counting = threading.Lock()

    def __len__(self) -> int:
        return len(self._table)

    @property
    def busy_at(self) -> float:
        """When a job was last added or a run last ended, by `time.monotonic()`."""
        return max(self.added_at, self.ended_at or 0.0)

    def add(self, jobs: Iterable[Claimed], *, asked_at: float) -> list[Attempt]:
        """Add claimed jobs, ignoring leases that are already in the table. Return the new attempts."""
        now = time.monotonic()
        fresh = [Attempt(job, now, asked_at=asked_at) for job in jobs if job.run_id not in self._table]
        self._table.update({attempt.job.run_id: attempt for attempt in fresh})
        self.added_at = now if fresh else self.added_at
        self._counters.claimed(len(fresh))
        return fresh

    @contextmanager
    def expecting_unknown(self) -> Generator[None]:
        """Expect leases that are not in this table: the block sends a claim, and the server's reply may be lost."""
        self._expect_unknown(2 * self._heartbeat)
        try:
            yield
        except Exception:
            self._expect_unknown(_DOUBTFUL + 3 * self._heartbeat)
            raise

    def _expect_unknown(self, seconds: float) -> None:
        self.unknown_until = max(self.unknown_until, time.monotonic() + seconds)

    def get(self, run_id: int) -> Attempt | None:
        """Return the attempt of this run, or None if it is not in the table."""
        return self._table.get(run_id)

    def run_ids(self) -> Collection[int]:
        """Return the run ids of all attempts."""
        return list(self._table)

    def older_than(self, seconds: float) -> list[Attempt]:
        """Return the attempts that were claimed more than `seconds` ago."""
        before = time.monotonic() - seconds
        return [attempt for attempt in list(self._table.values()) if attempt.claimed_at < before]

    def withdraw(self) -> None:
        """Prevent the start of each attempt that has not started yet."""
        for attempt in list(self._table.values()):
            attempt.is_withdrawn = attempt.started_at is None

    def ended(self, ends: Iterable[RunEnd]) -> list[RunEnd]:
        """Remove the attempts of these ends, which are stored or have lost their leases.

        Count and return the ends of runs: those that were still in the table and were not given back.
        """
        runs: list[RunEnd] = []
        for end in ends:
            attempt = self._table.pop(end.lease.run_id, None)
            if attempt is not None:
                if attempt.slot is not None:
                    attempt.slot.clear()
                if end.outcome.kind != "released":
                    runs.append(end)
        with self._counting:
            self.runs += len(runs)
            self.ended_at = time.monotonic() if runs else self.ended_at
        return runs
