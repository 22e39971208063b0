"""Listeners for notifications about new jobs, sent by this process and by others."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import psycopg
import sqlalchemy as sa
from psycopg import sql

from sqla_jobs.database.engines import for_itself
from sqla_jobs.database.preparing import is_direct
from sqla_jobs.database.subscribers import subscribe, unsubscribe
from sqla_jobs.database.timeouts import hang_up
from sqla_jobs.runtime.loop import Loop

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_LOOK = 2.0
"""The longest wait for notifications, in seconds, before the listener checks whether to test the connection."""
_PAUSE = 0.5
"""Seconds before the listener reconnects."""
_STOP = 1.0
"""The maximum number of seconds that stopping may take."""


class Subscription:
    """Receives only notifications sent by this process."""

    connections = 0

    def __init__(self, engine: sa.Engine, channel: str, heard: Callable[[str], object], *, patience: float) -> None:
        self._channel = channel
        self._heard = heard

    def start(self) -> None:
        subscribe(self._channel, self._heard)

    def stop(self) -> None:
        unsubscribe(self._channel, self._heard)


class _Connected(NamedTuple):
    """A listening connection, and the stack that closes it."""

    raw: psycopg.Connection[Any]
    closing: ExitStack


class Listener:
    """Receives notifications with LISTEN on a connection of its own.

    Notifications are a shortcut: polling makes up for lost ones. `heard(queue)` must return immediately: it is also
    called in the thread that commits jobs, or in the middle of a statement.

    Every `patience` seconds, the listener checks that the server answers: a broken connection is as silent as an idle
    one.

    The listener does not listen through a pooler such as PgBouncer, which would hand its connection to other clients.
    Behind a pooler, and while the connection is lost, polling finds other processes' new jobs.
    """

    connections = 1

    def __init__(self, engine: sa.Engine, channel: str, heard: Callable[[str], object], *, patience: float) -> None:
        self._engine = engine
        self._channel = channel
        self._statement = sql.SQL("LISTEN {}").format(sql.Identifier(channel))
        self._heard = heard
        self._patience = patience
        self._lock = threading.Lock()
        self._connected: _Connected | None = None
        self._loop = Loop("listening for new jobs", self._step, name="sqla_jobs-listener", finishes=True)

    def start(self) -> None:
        self._loop.start()  # first: without threads, `start` is called again
        subscribe(self._channel, self._heard)

    def stop(self) -> None:
        """Stop, also after a `start` that has raised an error."""
        unsubscribe(self._channel, self._heard)
        self._loop.stopping.set()
        with self._lock, suppress(psycopg.Error, OSError):  # the connection may already be closed
            if self._connected is not None:
                hang_up(self._connected.raw)
        self._loop.stop(_STOP)

    def _step(self) -> float:
        """Connect in one step, which is repeated until it succeeds, and listen in the next."""
        if self._connected is not None:
            self._listen(self._connected)
            return time.monotonic() + _PAUSE
        if not self._loop.stopping.is_set():
            self._connected = self._connect()
        return math.inf if self._connected is None else 0.0

    def _connect(self) -> _Connected | None:
        """Return a listening connection. Return None if a pooler is in front of the server."""
        with ExitStack() as closing:
            raw = closing.enter_context(for_itself(self._engine))
            if not is_direct(raw):
                log.info("a pooler is in front of the server: new jobs of other processes are found by polling")
                return None
            self._execute(raw, self._statement)
            return _Connected(raw, closing.pop_all())

    def _listen(self, connected: _Connected) -> None:
        """Pass on notifications until `stop` is called or the connection is lost."""
        raw, stopping = connected.raw, self._loop.stopping
        asked_at = time.monotonic()
        with connected.closing:
            try:
                self._heard("")  # makes up for notifications missed before the LISTEN
                while not stopping.is_set():
                    for notify in raw.notifies(timeout=min(_LOOK, self._patience / 2)):
                        self._heard(notify.payload)
                    if time.monotonic() - asked_at > self._patience:
                        self._execute(raw, self._statement)  # check that the server answers
                        asked_at = time.monotonic()
            except psycopg.Error as error:
                if not stopping.is_set():
                    log.warning("the listening connection for new jobs was lost, and is opened again: %s", error)
            finally:
                with self._lock:  # before it is closed: `stop` must not use its number for another file
                    self._connected = None

    def _execute(self, raw: psycopg.Connection[Any], statement: sql.Composed) -> None:
        """Execute a statement and commit. Pass on the notifications that arrive with the answer.

        Without a handler, older versions of psycopg drop these notifications.
        """
        raw.add_notify_handler(self._on_notify)
        raw.execute(statement)
        raw.commit()
        raw.remove_notify_handler(self._on_notify)

    def _on_notify(self, notify: psycopg.Notify) -> None:
        self._heard(notify.payload)
