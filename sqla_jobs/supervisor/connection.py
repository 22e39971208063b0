"""What a worker process and the parent that supervises it say to one another."""

from __future__ import annotations

import logging
import math
import os
import resource
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psycopg
from sqlalchemy import Engine, event

from sqla_jobs.execution.shared_memory import Memory, RunSlot, StartedRuns
from sqla_jobs.models.mapping import Models
from sqla_jobs.queries import Queries
from sqla_jobs.runtime.set_aside import SetAside
from sqla_jobs.runtime.settings import LeaseSettings
from sqla_jobs.runtime.stopping import StopRequest

log = logging.getLogger("sqla_jobs.worker")

_LOOK = 0.5
"""Seconds between two looks at how much this process has done and how large it is."""
_SESSION = "SELECT name, current_setting(name) FROM unnest(ARRAY['role', 'search_path']) AS name"
_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in which getrusage gives the memory."""


@dataclass(frozen=True, slots=True)
class Address:
    """To the parent: how to reach the database, as the application does now, and whose tables are ours."""

    parameters: dict[str, Any]
    session: dict[str, str]
    """What the application may set at each connection, and tables are found by."""
    schema: str | None
    prefix: str

    def connect(self) -> psycopg.Connection[Any]:
        """A new connection like the application's."""
        connection = psycopg.connect(**self.parameters)
        before = _session_of(connection)
        for name, value in self.session.items():
            if value != before[name]:
                connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        connection.commit()
        return connection


def _session_of(connection: psycopg.Connection[Any]) -> dict[str, str]:
    settings = dict(connection.execute(_SESSION).fetchall())
    connection.rollback()
    return settings


@dataclass(frozen=True, slots=True)
class Registered:
    """To the parent: beat for this process from now on, and for no other of mine."""

    process_id: uuid.UUID


@dataclass(frozen=True, slots=True)
class Leaving:
    """To the parent: I delete my row now, beat for me no more."""


@dataclass(frozen=True, slots=True)
class Drained:
    """To the parent: nothing is left to do, after that many runs."""

    runs: int


@dataclass(frozen=True, slots=True)
class Stop:
    """To the child: give back what has not started, and end."""


@dataclass(frozen=True, slots=True)
class Gone:
    """To the child: this process of yours was taken for dead."""

    process_id: uuid.UUID


class ParentConnection:
    """The child's end: the parent keeps it alive in the database, and can read what it has started.

    Where the parent is gone the child stops: what can end within half a lease does.
    """

    def __init__(self, pipe: Connection, memory: Memory, lease: float) -> None:
        self.stop = StopRequest()
        self.runs: Callable[[], int] = lambda: 0
        """How many runs have ended here."""
        self._pipe = pipe
        self._started = StartedRuns(memory)
        self._lease = lease
        self._sending = threading.Lock()
        self._gone: uuid.UUID | None = None
        self._engine: Engine | None = None
        self._tell_at = 0.0
        self._models: Models[Any] | None = None
        threading.Thread(target=self._listen, name="sqla_jobs-parent", daemon=True).start()

    @property
    def beat_at(self) -> float:
        return self._started.beat_at

    def meet(
        self, engine: Engine, models: Models[Any], queries: Queries, settings: LeaseSettings, set_aside: SetAside
    ) -> None:
        self._engine, self._models = engine, models

        def tell(connection: psycopg.Connection[Any], _: object) -> None:
            self._tell_address(models, connection)

        event.listen(engine, "connect", tell)
        with engine.connect() as connection:
            tell(connection.connection.driver_connection, None)  # type: ignore[arg-type]

    def registered(self, process_id: uuid.UUID) -> None:
        self._started.beat_at = time.monotonic()
        self.send(Registered(process_id))

    @property
    def due_in(self) -> float:
        return math.inf  # the parent beats

    def keep(self, process_id: uuid.UUID) -> bool:
        if self._gone == process_id:
            return False
        now = time.monotonic()
        if now - self.beat_at > self._lease / 2 and now >= self._tell_at:
            self._tell_at = now + self._lease / 2
            self._tell_anew()
        return True

    def leaving(self) -> None:
        self.send(Leaving())

    def slot(self) -> RunSlot | None:
        return self._started.take()

    def send(self, message: object) -> None:
        """Tell the parent."""
        with self._sending:
            try:
                self._pipe.send(message)
            except OSError:
                self._orphaned()

    def _tell_anew(self) -> None:
        """The parent does not beat: what it was told may have expired, as a password can. A new connection tells it."""
        assert self._engine is not None, "meet() comes first"
        pool = self._engine.pool.recreate()
        pool.connect().close()
        pool.dispose()

    def _tell_address(self, models: Models[Any], connection: psycopg.Connection[Any]) -> None:
        info = connection.info
        parameters = info.get_parameters() | ({"password": info.password} if info.password else {})
        self.send(Address(parameters, _session_of(connection), models.positions.schema, models.prefix))

    def _listen(self) -> None:
        try:
            while True:
                self._started.alive_at = time.monotonic()
                if self._pipe.poll(_LOOK):
                    self._obey(self._pipe.recv())
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT
                self._started.vitals = (self.runs(), memory)
        except (EOFError, OSError):
            self._orphaned()

    def _obey(self, message: Gone | Stop) -> None:
        match message:
            case Gone(process_id):
                self._gone = process_id
            case Stop():
                self.stop.set()

    def _orphaned(self) -> None:
        if self._models is None:
            os._exit(1)
        if not self.stop.is_set():
            log.error("the parent process is gone: this one stops")
            self.stop.grace = self._lease / 2
            self.stop.set()
