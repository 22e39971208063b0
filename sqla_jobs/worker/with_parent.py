"""A worker's host: its connection to the outside world, with or without a parent process."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Protocol

from sqla_jobs.database.connection_limits import warn_of_few_connections
from sqla_jobs.execution.shared_memory import RunSlot
from sqla_jobs.runtime.counters import Counters
from sqla_jobs.runtime.heartbeat import Heartbeat
from sqla_jobs.worker.lookout import Lookout, OwnLookout
from sqla_jobs.worker.services import WorkerServices


class Host(Protocol):
    """Shows in the database that one worker is alive, and notifies it of work: directly, or through a parent."""

    connections: int
    """The maximum number of connections that the worker uses, not counting two for claims and those of its jobs."""
    slot: Callable[[], RunSlot] | None
    """Returns a slot in which to publish the beginning of a run. None if no parent is watching."""

    @property
    def all_connections(self) -> int:
        """The maximum number of connections of the worker and its parent together, not counting those of its jobs."""
        ...

    @property
    def beat_at(self) -> float:
        """When the worker's last heartbeat was stored, by `time.monotonic()`."""
        ...

    def meet(self, services: WorkerServices, sessions: int) -> None:
        """Receive what the worker's parts share, before the worker registers.

        The jobs use up to `sessions` connections simultaneously.
        """
        ...

    def lookout(self, services: WorkerServices, tasks: Sequence[str]) -> Lookout:
        """Return the lookout that finds work for a worker that runs these tasks."""
        ...

    def may_close(self, close_idle: Callable[[], None]) -> None:
        """Register `close_idle`, which closes connections that an idle worker does not need."""
        ...

    def registered(self, process_id: uuid.UUID) -> None:
        """Record that the worker has registered a row with this id."""
        ...

    @property
    def due_in(self) -> float:
        """Seconds until the next heartbeat is due."""
        ...

    def keep(self, process_id: uuid.UUID) -> bool:
        """Send a heartbeat if one is due. Return False if the worker was considered dead."""
        ...

    def kill_for(self, run_id: int) -> None:
        """Have the process killed if this run does not stop. This is called repeatedly."""
        ...

    def rest(self) -> None:
        """Save resources: the worker has been idle for a while and is sending no claims.

        This is called repeatedly.
        """
        ...

    def leaving(self) -> None:
        """Record that the worker is about to delete its row."""
        ...


class Alone:
    """The host of a worker without a parent. It sends heartbeats and rescues the jobs of dead processes."""

    connections = 5
    """One connection each for heartbeats, listening, pruning, the ends of runs, and the rest.

    So no thread has to wait.
    """
    all_connections: int = connections + 2
    slot: Callable[[], RunSlot] | None = None

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._process_ids = set[uuid.UUID]()
        """The id of the worker's row. The set is empty after the worker was considered dead."""
        self._beat_at = time.monotonic()

    @property
    def beat_at(self) -> float:
        return self._beat_at

    def meet(self, services: WorkerServices, sessions: int) -> None:
        warn_of_few_connections(services.engine, self.all_connections + sessions)
        self._heartbeat = Heartbeat(
            services.engine,
            services.queries,
            services.settings,
            services.set_aside,
            living=lambda: list(self._process_ids),
            beaten=self._beaten,
            gone=self._process_ids.discard,
            lost=self._counters.lost,
        )

    def lookout(self, services: WorkerServices, tasks: Sequence[str]) -> Lookout:
        return OwnLookout(services, tasks)

    def may_close(self, close_idle: Callable[[], None]) -> None:
        """Do nothing: the worker's few connections stay open."""

    def registered(self, process_id: uuid.UUID) -> None:
        self._process_ids.add(process_id)
        self._beat_at = time.monotonic()

    def _beaten(self, process_ids: set[uuid.UUID], moment: float) -> None:
        if process_ids:
            self._beat_at = moment
            self._counters.beaten()

    @property
    def due_in(self) -> float:
        return self._heartbeat.due_in

    def keep(self, process_id: uuid.UUID) -> bool:
        self._heartbeat.beat_if_due()
        if self._process_ids:
            self._heartbeat.rescue_if_due()
        return process_id in self._process_ids

    def kill_for(self, run_id: int) -> None:
        """Do nothing: the process may be a web server, which the worker must not kill."""

    def rest(self) -> None:
        """Do nothing: heartbeats and polls continue."""

    def leaving(self) -> None:
        """Do nothing: there is no parent to notify."""
