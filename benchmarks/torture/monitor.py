"""Measures for how long each fault holds up work. The connection to the server is direct."""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import DBAPIError

from benchmarks.torture.app import jobs
from benchmarks.torture.background import Background

_POLL = 0.05
_HUNG = (
    select(jobs.Process.pid)
    .join(jobs.Job, jobs.Job.process_id == jobs.Process.id)
    .where(jobs.Job.task == "hang", jobs.Job.state == "running")
)
_LOOK_BACK = 1000
"""The monitor looks for the first success after an outage among this number of the newest runs."""


@dataclass(eq=False)
class _Watch:
    """A fault that the monitor watches. It is over when all of `runs` have ended.

    After an outage, it is over when a later run has succeeded.
    """

    fault: str
    began: float
    runs: set[int] = field(default_factory=set[int])
    later_than: int | None = None

    def is_over(self, running: set[int], newest_success: int) -> bool:
        self.runs &= running
        return newest_success > self.later_than if self.later_than is not None else not self.runs


class Monitor(Background):
    """A thread that checks twenty times a second what became of the jobs that each fault hit.

    `unrecovered` lists the faults whose jobs have not recovered when the thread stops.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__("monitor")
        self._engine = engine
        self._lock = threading.Lock()
        self._watches: list[_Watch] = []
        self._seconds: dict[str, list[float]] = defaultdict(list)

    def hit(self, fault: str, pids: Collection[int]) -> int:
        """Watch the runs in these processes, which a fault has just hit. Return the number of these runs."""
        try:
            with self._engine.connect() as connection:
                runs = _running(connection, pids)
        except DBAPIError:  # the server is down, so there is nothing to measure
            return 0
        if runs:
            with self._lock:
                self._watches.append(_Watch(fault, time.monotonic(), runs))
        return len(runs)

    def hit_where_hung(self) -> None:
        """Watch the runs in processes that a job has hung."""
        try:
            with self._engine.connect() as connection:
                pids = list(connection.scalars(_HUNG))
        except DBAPIError:
            return
        if pids:
            self.hit("hang", pids)

    def outage_ended(self, fault: str) -> None:
        """Watch for the first job that succeeds now that the server accepts connections again."""
        with self._engine.connect() as connection:
            newest = connection.scalar(select(func.max(jobs.Run.id))) or 0
        with self._lock:
            self._watches.append(_Watch(fault, time.monotonic(), later_than=newest))

    @property
    def unrecovered(self) -> list[str]:
        with self._lock:
            return [watch.fault for watch in self._watches]

    def figures(self) -> Iterable[tuple[str, int, float, float]]:
        """Yield each fault, the number of its measurements, and the median and longest recovery in seconds."""
        with self._lock:
            for fault, seconds in sorted(self._seconds.items()):
                yield fault, len(seconds), statistics.median(seconds), max(seconds)

    def _loop(self) -> None:
        while not self._stop.wait(_POLL):
            with self._lock:
                watches = list(self._watches)
            if not watches:
                continue
            try:
                over = self._look(watches)
            except DBAPIError:  # the recovery includes the outage
                continue
            now = time.monotonic()
            with self._lock:
                for watch in over:
                    self._watches.remove(watch)
                    self._seconds[watch.fault].append(now - watch.began)

    def _look(self, watches: list[_Watch]) -> list[_Watch]:
        with self._engine.connect() as connection:
            running, newest = _running(connection), _newest_success(connection)
        return [watch for watch in watches if watch.is_over(running, newest)]


def _running(connection: Connection, pids: Collection[int] | None = None) -> set[int]:
    """Return the runs under way, or those in some processes. Runs of jobs with an oddity are left out."""
    job = jobs.Job
    found = select(job.current_run_id).where(
        job.state == "running", job.current_run_id.is_not(None), job.oddity.is_(None)
    )
    if pids is not None:
        found = found.where(job.process_id.in_(select(jobs.Process.id).where(jobs.Process.pid.in_(pids))))
    return {run_id for run_id in connection.scalars(found) if run_id is not None}


def _newest_success(connection: Connection) -> int:
    last = select(jobs.Run.id, jobs.Run.outcome).order_by(jobs.Run.id.desc()).limit(_LOOK_BACK).subquery()
    return connection.scalar(select(func.max(last.c.id)).where(last.c.outcome == "succeeded")) or 0
