"""A worker that has no parent keeps itself alive in the database."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Engine

from sqla_jobs.database.limits import LIMIT, warn_of_few_connections
from sqla_jobs.execution.shared_memory import RunSlot
from sqla_jobs.models.mapping import Models
from sqla_jobs.queries import Queries
from sqla_jobs.runtime.counters import Counters
from sqla_jobs.runtime.heartbeat import Heartbeat
from sqla_jobs.runtime.set_aside import SetAside
from sqla_jobs.runtime.settings import Settings
from sqla_jobs.runtime.stopping import StopRequest


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

    def meet(
        self,
        engine: Engine,
        models: Models[Any],
        queries: Queries,
        settings: Settings,
        set_aside: SetAside,
        sessions: int,
    ) -> None:
        def ask() -> Sequence[int]:
            with engine.connect() as connection:
                return connection.exec_driver_sql(LIMIT).one()

        warn_of_few_connections(ask, self.all_connections + sessions)
        self._heartbeat = Heartbeat(
            engine,
            queries,
            settings,
            set_aside,
            living=lambda: list(self._process_ids),
            beaten=self._beaten,
            gone=self._process_ids.discard,
            lost=self._counters.lost,
        )

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
