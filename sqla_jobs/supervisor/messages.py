"""What a worker process and the parent that supervises it say to one another."""

from __future__ import annotations

import select
import uuid
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psycopg

from sqla_jobs.calls.statements import Rendered
from sqla_jobs.runtime.counters import Totals
from sqla_jobs.runtime.figures import Figures
from sqla_jobs.supervisor.spec import MOST_PROCESSES

_SESSION = "SELECT name, current_setting(name) FROM unnest(ARRAY['role', 'search_path']) AS name"


def keeps_up(pipe: Connection) -> bool:
    """Whether the other end reads its messages: only then does sending one not block."""
    look = select.poll()
    look.register(pipe, select.POLLOUT)
    return bool(look.poll(0))


def session_of(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """Settings of a session by which tables are found: an application may set them at each connection."""
    settings = dict(connection.execute(_SESSION).fetchall())
    connection.rollback()
    return settings


@dataclass(frozen=True, slots=True)
class Configured:
    """To the parent, before all else: what the application's config says about options. It answers a `ChildSpec`."""

    defaults: dict[str, dict[str, Any]]
    """By command and option."""


@dataclass(frozen=True, slots=True)
class Statements:
    """To the parent, before any `Address`: by name the statements that it sends, and the channel on which to listen."""

    channel: str
    rendered: dict[str, Rendered]


@dataclass(frozen=True, slots=True)
class Address:
    """To the parent: how to reach the database, as the application does now."""

    parameters: dict[str, Any]
    session: dict[str, str]
    """As `session_of` tells it."""

    def connect(self) -> psycopg.Connection[Any]:
        """A new connection like the application's."""
        connection = psycopg.connect(**self.parameters)
        before = session_of(connection)
        for name, value in self.session.items():
            if value != before[name]:
                connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        connection.commit()
        return connection


@dataclass(frozen=True, slots=True)
class Registered:
    """To the parent: beat for this process from now on, and for no other of mine."""

    process_id: uuid.UUID


@dataclass(frozen=True, slots=True)
class Serving:
    """To the parent: look for jobs of these tasks for me. I neither listen nor poll."""

    tasks: tuple[str, ...]
    sessions: int
    """Connections that the jobs of one child may use at once."""


@dataclass(frozen=True, slots=True)
class Expecting:
    """To the parent: a job will be due in `delay` seconds."""

    delay: float


@dataclass(frozen=True, slots=True)
class PassOn:
    """To the parent: there may be more jobs in this queue than I have room for.

    After `hops` such messages all processes are told.
    """

    queue: str
    hops: int = MOST_PROCESSES


@dataclass(frozen=True, slots=True)
class Leaving:
    """To the parent: I delete my row now, beat for me no more."""


@dataclass(frozen=True, slots=True)
class Kill:
    """To the parent: kill me, if this run does not stop."""

    run_id: int


@dataclass(frozen=True, slots=True)
class Drained:
    """To the parent: nothing is left to do, after that many runs."""

    runs: int


@dataclass(frozen=True, slots=True)
class Observed:
    """To the parent, each second if it wants that, and at the end: how the worker does."""

    totals: Totals
    trouble: str | None
    """Why it cannot claim now."""


@dataclass(frozen=True, slots=True)
class FiguresRead:
    """To the parent, after `ReadFigures`: the answer. `None`: the database gave none."""

    figures: Figures | None


ToParent = (
    Configured
    | Statements
    | Address
    | Registered
    | Serving
    | Expecting
    | PassOn
    | Leaving
    | Kill
    | Drained
    | Observed
    | FiguresRead
)


@dataclass(frozen=True, slots=True)
class Heard:
    """To the child: there are new jobs in this queue.

    Where no slot may be free for them, it answers `PassOn` with the same `hops`; 0: all processes are told already.
    """

    queue: str
    hops: int = 0


@dataclass(frozen=True, slots=True)
class LookAgain:
    """To the child: there are queued jobs somewhere, perhaps where nobody looks at the moment. `hops` as in `Heard`."""

    hops: int = 0


@dataclass(frozen=True, slots=True)
class ReadFigures:
    """To the child: tell what the database knows."""


@dataclass(frozen=True, slots=True)
class Stop:
    """To the child: give back what has not started, and end."""


@dataclass(frozen=True, slots=True)
class Gone:
    """To the child: this process of yours was taken for dead."""

    process_id: uuid.UUID
