"""A parent's work in one database: the heartbeats of its children there, and the lookout for jobs."""

from __future__ import annotations

import logging

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
        self.heartbeat.start()
        self.lookout: ParentLookout | None = None
        """The lookout, once a child that does not look for itself has registered."""

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
            self.lookout.start()
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
