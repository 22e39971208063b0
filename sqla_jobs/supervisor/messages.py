"""The messages between a worker process and its parent."""

from __future__ import annotations

import os
import pickle
import select
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import psycopg

from sqla_jobs.runtime.counters import Totals

_LENGTH = 4
"""The number of bytes in which `Connection.send` writes the length of a message, before the message."""
_SESSION = "SELECT name, current_setting(name) FROM unnest(ARRAY['role', 'search_path']) AS name"


def keeps_up(pipe: Connection) -> bool:
    """Return whether the other end reads its messages, so that another can be sent without blocking."""
    look = select.poll()
    look.register(pipe, select.POLLOUT)
    return bool(look.poll(0))


def received(pipe: Connection, buffer: bytearray) -> Iterator[Any]:
    """Yield the messages that have arrived, and keep the beginning of the next one in `buffer`.

    This does not wait for the rest of a message: the other end may be frozen. Raises `EOFError` or `OSError` if the
    other end is gone.
    """
    while pipe.poll():
        if not (some := os.read(pipe.fileno(), 65_536)):
            raise EOFError
        buffer += some
        while len(buffer) >= (end := _LENGTH + int.from_bytes(buffer[:_LENGTH])):
            message = buffer[_LENGTH:end]
            del buffer[:end]
            yield pickle.loads(message)  # noqa: S301 - the other end is this program, too


def session_of(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """Return the session settings that determine how tables are found.

    An application may set these on each new connection.
    """
    settings = dict(connection.execute(_SESSION).fetchall())
    connection.rollback()
    return settings


@dataclass(frozen=True, slots=True)
class Configured:
    """To the parent, as the first message: what the application's code says. The answer is a `ChildSpec`."""

    defaults: dict[str, Any]
    """The options in the application's config, by command and name."""
    shards: tuple[str, ...]
    """The names of the databases that the application binds, if it binds several."""


class TableNames(NamedTuple):
    """The names of the jobs' tables."""

    schema: str | None
    """The schema that the models name, if any."""
    prefix: str
    found_in: str | None = None
    """The schema in which the application finds the tables."""


@dataclass(frozen=True, slots=True)
class Address:
    """To the parent: the database address that the application currently uses, and the names of the tables there."""

    tables: TableNames
    parameters: dict[str, Any]
    session: dict[str, str]
    """The settings from `session_of`."""
    sessions: int = 0
    """The maximum number of connections to this address that one child's jobs use simultaneously."""
    identity: tuple[Any, ...] = ()
    """What `identity_of` returns for the tables."""

    def connect(self) -> psycopg.Connection[Any]:
        """Return a new connection with the application's address and session settings."""
        connection = psycopg.connect(**self.parameters)
        before = session_of(connection)
        for name, value in self.session.items():
            if value != before[name]:
                connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        connection.commit()
        return connection


@dataclass(frozen=True, slots=True)
class Registered:
    """To the parent: from now on, send heartbeats for the row with this id, and for no other row of this child."""

    process_id: uuid.UUID


@dataclass(frozen=True, slots=True)
class Serving:
    """To the parent: look for jobs of these tasks on behalf of this child, which neither listens nor polls."""

    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Expecting:
    """To the parent: a job will be due in `delay` seconds."""

    delay: float


@dataclass(frozen=True, slots=True)
class FoundMore:
    """To the parent, at most once between two rests: this queue may have more jobs than this child has room for."""

    queue: str


@dataclass(frozen=True, slots=True)
class PassOn:
    """To the parent: this child does not answer for what it alone was told about this queue. Tell the next child."""

    queue: str


@dataclass(frozen=True, slots=True)
class Leaving:
    """To the parent: this child is now deleting its row. Send no more heartbeats for this child."""


@dataclass(frozen=True, slots=True)
class Kill:
    """To the parent: kill this child if the run does not stop."""

    run_id: int


@dataclass(frozen=True, slots=True)
class Drained:
    """To the parent: no work is left, after `runs` runs."""

    runs: int


@dataclass(frozen=True, slots=True)
class Observed:
    """To the parent, every second if requested, and at the end: the worker's state."""

    totals: Totals
    trouble: str | None
    """The reason why the worker cannot claim, if any."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """To the parent, and to the child: the database answers again, so try again now what has failed."""


ToCrew = Address | Registered | Serving | Expecting | FoundMore | PassOn | Leaving | Kill | Drained
"""What the parent's work in one database is about."""
ToParent = Configured | Observed | Recovered | ToCrew


@dataclass(frozen=True, slots=True)
class Heard:
    """To the child: there are new jobs in this queue."""

    queue: str
    is_alone: bool = False
    """True if no other child is told. This child then answers for the jobs, or replies with `PassOn`."""


@dataclass(frozen=True, slots=True)
class LookAgain:
    """To one child alone: some jobs are still queued, so look for them even below the scan floors."""


@dataclass(frozen=True, slots=True)
class Stop:
    """To the child: give back the jobs that have not started, and end."""


@dataclass(frozen=True, slots=True)
class Gone:
    """To the child: its process with this id was considered dead."""

    process_id: uuid.UUID
