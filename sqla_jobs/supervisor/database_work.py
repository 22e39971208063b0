"""A parent's work in one database: the heartbeats of its children there, and the lookout for jobs."""

from __future__ import annotations

import logging
import math
import time

from sqla_jobs.runtime.counters import Counters
from sqla_jobs.runtime.set_aside import SetAside
from sqla_jobs.supervisor.database import Database
from sqla_jobs.supervisor.heartbeat import ParentHeartbeat
from sqla_jobs.supervisor.lookout import ParentLookout
from sqla_jobs.supervisor.messages import Address
from sqla_jobs.supervisor.roster import Roster, ShardRoster
from sqla_jobs.supervisor.spec import Setup

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_SETTLE = 5.0
"""When the parent stops, it may spend this many seconds storing the ends of killed children's runs."""
_AGAIN = 1.0
"""Seconds until the next try to start a thread."""


class DatabaseWork:
    """Sends heartbeats from the start, and looks for jobs once a child asks for that."""

    def __init__(self, name: str, address: Address, setup: Setup, children: Roster, counters: Counters) -> None:
        self._setup = setup
        self._workers = ShardRoster(children, name)
        self._set_aside = SetAside()
        settings = setup.spec.settings
        self.database: Database = Database(address, patience=settings.patience)
        self.heartbeat: ParentHeartbeat = ParentHeartbeat(
            self.database, settings, self._set_aside, self._workers, counters
        )
        self.lookout: ParentLookout | None = None
        """The lookout, once a child that does not look for itself has registered."""
        self._start_at = 0.0
        """When to start the threads that are missing, by `time.monotonic()`."""
        self.start()

    def start(self) -> None:
        """Start the threads that are missing. If the system refuses that, log a warning: the next call tries again."""
        if time.monotonic() < self._start_at:
            return
        try:
            self.heartbeat.start()
            if self.lookout is not None:
                self.lookout.start()
        except RuntimeError as error:
            self._start_at = time.monotonic() + _AGAIN
            log.warning(
                "a thread of the parent is missing, and the next try to start it is in %g s: %s; ulimit -u may be too "
                "low",
                _AGAIN,
                error,
            )
        else:
            self._start_at = math.inf

    def serve(self, tasks: tuple[str, ...]) -> None:
        """Look for jobs of these tasks from now on."""
        if self.lookout is None:
            spec, database = self._setup.spec, self.database
            self.lookout = ParentLookout(
                database,
                spec.settings,
                self._set_aside,
                tasks=tasks,
                connections=spec.connections_of(self._setup.options.processes, database.address.sessions),
                children=self._workers.claiming,
            )
            self._start_at = 0.0
            self.start()
        self.lookout.serve(tasks)

    def tell_all(self) -> None:
        """Notify all children of new jobs in any queue."""
        if self.lookout is not None:
            self.lookout.heard("")

    def close(self) -> None:
        """Stop, once the work of dead children is settled or that takes too long."""
        if self.lookout is not None:
            self.lookout.stop()
        if not self.heartbeat.close(_SETTLE):
            log.warning(
                "the ends of killed processes' jobs could not be stored; the jobs are taken back when the lease ends"
            )
        self.database.engine.dispose()
