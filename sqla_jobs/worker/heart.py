"""Keeps a process alive in the database, and looks after jobs that lost theirs."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection, Engine

from sqla_jobs import processes
from sqla_jobs.executor import Held
from sqla_jobs.mapping import Models
from sqla_jobs.queries import Lease, Queries
from sqla_jobs.worker.patience import Patience
from sqla_jobs.worker.settings import Settings

log = logging.getLogger("sqla_jobs.worker")

_LOOK = 1.0
"""Seconds between two looks at what this process holds: cancel requests in, progress out."""
_SIGN_OFF = 5.0
"""Seconds that a heartbeat under way may take when the worker stops."""


class Heart:
    """Beats on a connection of its own, in a thread that user code cannot hold up but by holding the GIL.

    `held` is shared with the worker; `lost` is called after this process was taken for dead: it goes on
    under a new id, and every lease of the old one is somebody else's. `stray` is given leases that the
    server says we hold and we know nothing of.
    """

    def __init__(
        self,
        engine: Engine,
        models: Models[Any],
        queries: Queries,
        settings: Settings,
        *,
        held: Mapping[int, Held],
        claiming: threading.Lock,
        lost: Callable[[], None],
        stray: Callable[[list[Lease]], None],
    ) -> None:
        self._engine = engine
        self._models = models
        self._queries = queries
        self._settings = settings
        self._held = held
        self._claiming = claiming
        self._on_lost = lost
        self._on_stray = stray
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sqla_jobs-heart", daemon=True)
        self._process_id: uuid.UUID | None = None
        self._beat_at = 0.0
        self._unbroken_since = 0.0
        self._is_behind = False
        """The last round failed: the next one asks the server whatever the time, or it would be taken for a success."""

    @property
    def process_id(self) -> uuid.UUID:
        """The row under which this process lives now."""
        assert self._process_id is not None, "start() comes first"
        return self._process_id

    @property
    def is_sure(self) -> bool:
        """Whether the last beat is recent enough to take on new work."""
        return time.monotonic() - self._beat_at < self._settings.lease / 2

    def start(self) -> None:
        """Register, then go on beating. Raises what the database raises."""
        self._register()
        self._thread.start()

    def stop(self) -> None:
        """Stop beating, and delete the row: what the process still held is free for others at once."""
        self._stop.set()
        self._thread.join(_SIGN_OFF)
        if self._thread.is_alive():
            log.warning("could not sign off, the server does not answer: the lease will run out by itself")
            return
        with self._engine.begin() as connection:
            processes.unregister(connection, self._models, self.process_id)

    def _register(self) -> None:
        began = time.monotonic()
        with self._engine.begin() as connection:
            self._process_id = processes.register(
                connection,
                self._models,
                kind="worker",
                queues=self._settings.queues,
                lease=self._settings.lease,
            )
        self._beat_at = self._unbroken_since = began

    def _loop(self) -> None:
        # after an outage every living process is to have beaten before another one may take it for dead
        patience = Patience("the heartbeat", self._stop, longest=min(5.0, self._settings.heartbeat))
        while not self._stop.wait(min(_LOOK, self._settings.heartbeat)):
            patience.run(self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        is_behind, self._is_behind = self._is_behind, True
        if is_behind or now - self._beat_at >= self._settings.heartbeat:
            self._beat(now)
            self._give_back_stray()
            self._rescue()
        if self._held:
            with self._engine.begin() as connection:
                self._look(connection)
        self._is_behind = False

    def _beat(self, now: float) -> None:
        with self._engine.begin() as connection:
            alive = processes.beat(connection, self._models, self.process_id)
        if not alive:
            log.warning(
                "this process was taken for dead after %.1f s without a heartbeat; its jobs are left to others, "
                "and it goes on under a new id",
                now - self._beat_at,
            )
            self._register()
            self._on_lost()
            return
        if now - self._beat_at > self._settings.lease / 2:
            self._unbroken_since = now
        self._beat_at = now

    def _rescue(self) -> None:
        """Take back the jobs of the dead, once our own beats prove that the server was there all along."""
        if self._beat_at - self._unbroken_since < self._settings.lease:
            return
        with self._engine.begin() as connection:
            buried = self._queries.bury(connection)
        for process_id in buried:
            log.warning("process %s is dead: no heartbeat for its whole lease", process_id)
        while rescued := self._rescue_some():
            for job_id, state in rescued:
                log.warning("job %s lost its process and is %s now", job_id, state)

    def _rescue_some(self) -> list[tuple[int, str]]:
        with self._engine.begin() as connection:
            return self._queries.rescue(connection)

    def _give_back_stray(self) -> None:
        """Release what a claim gave us whose answer never arrived; not while a claim is under way."""
        if not self._claiming.acquire(blocking=False):
            return
        try:
            with self._engine.begin() as connection:
                held, age = list(self._held), self._settings.heartbeat
                leases = self._queries.stray(connection, self.process_id, held, age=age)
        finally:
            self._claiming.release()
        if leases:
            self._on_stray(leases)

    def _look(self, connection: Connection) -> None:
        told: list[tuple[Lease, float, str | None]] = []
        for held in list(self._held.values()):
            progress, held.progress = held.progress, None
            if progress:
                told.append((held.job, *progress))
        if told:
            self._queries.store_progress(connection, told)
        for run_id in self._queries.cancel_requests(connection, self.process_id):
            if (wanted := self._held.get(run_id)) is not None:
                wanted.cancel()
