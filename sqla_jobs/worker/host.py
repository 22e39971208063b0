"""What is outside of a worker: nothing, where it is alone, or a parent process."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Protocol

from sqla_jobs.database.limits import LIMIT, warn_of_few_connections
from sqla_jobs.execution.shared_memory import RunSlot
from sqla_jobs.runtime.counters import Counters
from sqla_jobs.runtime.heartbeat import Heartbeat
from sqla_jobs.runtime.stopping import StopRequest
from sqla_jobs.worker.attempts import Shared
from sqla_jobs.worker.lookout import Lookout, OwnLookout


class Host(Protocol):
    """Keeps one worker alive in the database and tells it of work: itself, or through its parent process."""

    stop: StopRequest
    connections: int
    """How many the worker may use at once, beside the two for claims and those of its jobs."""
    all_connections: int
    """How many it may use at once in all, and its parent, beside those of its jobs."""
    slot: Callable[[], RunSlot] | None
    """Gives where to publish a run that begins, if anybody watches that."""

    @property
    def beat_at(self) -> float:
        """When the server last heard that the worker lives, by `time.monotonic()`."""
        ...

    def meet(self, shared: Shared, sessions: int) -> None:
        """Get to know the database, before all else. The jobs may use that many `sessions` at once."""
        ...

    def lookout(self, shared: Shared, tasks: Sequence[str]) -> Lookout:
        """What finds work for a worker of these tasks."""
        ...

    def may_close(self, close_idle: Callable[[], None]) -> None:
        """`close_idle` closes connections that are of no use while the worker rests."""
        ...

    def registered(self, process_id: uuid.UUID) -> None:
        """The worker has a row, under this id from now on."""
        ...

    @property
    def due_in(self) -> float:
        """Seconds until it is time to beat."""
        ...

    def keep(self, process_id: uuid.UUID) -> bool:
        """Beat where it is time. False: the worker was taken for dead."""
        ...

    def kill_for(self, run_id: int) -> None:
        """Have the process killed, if this run does not stop. Called again and again."""
        ...

    def rest(self) -> None:
        """No job has been here for a while, and no claim is sent either. Called again and again."""
        ...

    def leaving(self) -> None:
        """The worker is about to delete its row."""
        ...


class Alone:
    """Sends the heartbeats of a worker without a parent, and rescues the jobs of dead processes."""

    connections = 5
    """For heartbeats, listening and pruning one each, and two for finishes: none waits for another."""
    all_connections: int = connections + 2
    slot: Callable[[], RunSlot] | None = None

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self.stop: StopRequest = StopRequest()
        self._process_ids = set[uuid.UUID]()
        """The id of its row; empty after it was taken for dead."""
        self._beat_at = time.monotonic()

    @property
    def beat_at(self) -> float:
        return self._beat_at

    def meet(self, shared: Shared, sessions: int) -> None:
        def ask() -> Sequence[int]:
            with shared.engine.connect() as connection:
                return connection.exec_driver_sql(LIMIT).one()

        warn_of_few_connections(ask, self.all_connections + sessions)
        self._heartbeat = Heartbeat(
            shared.engine,
            shared.queries,
            shared.settings,
            shared.set_aside,
            living=lambda: list(self._process_ids),
            beaten=self._beaten,
            gone=self._process_ids.discard,
            lost=self._counters.lost,
        )

    def lookout(self, shared: Shared, tasks: Sequence[str]) -> Lookout:
        return OwnLookout(shared, tasks)

    def may_close(self, close_idle: Callable[[], None]) -> None:
        """Its few connections stay open."""

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
        """This may be a web server, whose process is not the worker's to kill."""

    def rest(self) -> None:
        """Heartbeats and polls go on."""

    def leaving(self) -> None:
        """There is no parent to tell."""
