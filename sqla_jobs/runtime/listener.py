"""Listeners for notifications about new jobs, sent by this process and by others."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any

import psycopg
from psycopg import sql

from sqla_jobs.database.preparing import is_direct
from sqla_jobs.database.subscribers import GREETING, followers_of, subscribe
from sqla_jobs.database.timeouts import hang_up
from sqla_jobs.runtime.retrying import RetryLoop

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

Connect = Callable[[], AbstractContextManager[psycopg.Connection[Any]]]
"""Returns a connection that nothing else uses, now or later."""

_LOOK = 2.0
"""The longest wait for notifications, in seconds, before the listener checks whether to test the connection."""
_PAUSE = 0.5
"""Seconds before the listener reconnects."""
_STOP = 1.0
"""The maximum number of seconds that stopping may take."""


class Subscription:
    """Receives only notifications sent by this process."""

    connections = 0

    def __init__(self, connect: Connect, channel: str, heard: Callable[[str], object], *, patience: float) -> None:
        self._channel = channel
        self._heard = heard

    def start(self) -> None:
        self._unsubscribe = subscribe(self._channel, self._heard)

    def stop(self) -> None:
        self._unsubscribe()


class Listener:
    """Receives notifications with LISTEN on its own connection.

    Notifications are a shortcut: polling makes up for lost ones. `look_for(queue)` handles notifications from the
    server, and may take a long time. `heard(queue)` must return immediately: it is called in the thread that commits
    jobs, or in the middle of a statement.

    Every `patience` seconds, the listener checks that the server answers: a broken connection is as silent as an idle
    one.

    The listener does not listen through a pooler such as PgBouncer, which would hand its connection to other clients.
    Behind a pooler, and while the connection is lost, polling finds other processes' new jobs.
    """

    connections = 1

    def __init__(
        self,
        connect: Connect,
        channel: str,
        heard: Callable[[str], object],
        *,
        look_for: Callable[[str], object] | None = None,
        greets: bool = False,
        what: str = "new jobs",
        is_wanted: Callable[[], bool] = lambda: True,
        patience: float,
    ) -> None:
        """Prepare to listen.

        If `greets` is true, the listener greets the processes that follow jobs, and these then announce themselves.

        Log lines call the subject of the notifications `what`. If the connection is lost while `is_wanted`
        returns False, the listener ends instead of reconnecting.
        """
        self._what = what
        self._connect_alone = connect
        self._channel = channel
        self._statement = sql.SQL("LISTEN {}").format(sql.Identifier(channel))
        greeting = sql.SQL("SELECT pg_notify({}, {})").format(followers_of(channel), GREETING)
        self._greeting = greeting if greets else None
        self._heard = heard
        self._look_for = look_for or heard
        self._is_wanted = is_wanted
        self._patience = patience
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._listening: psycopg.Connection[Any] | None = None
        self._thread = threading.Thread(target=self._loop, name="sqla_jobs-listener", daemon=True)

    def start(self) -> None:
        self._unsubscribe = subscribe(self._channel, self._heard)
        self._thread.start()

    def stop(self) -> None:
        self._unsubscribe()
        self._stop.set()
        with self._lock, suppress(psycopg.Error, OSError):  # the connection may already be closed
            if self._listening is not None:
                hang_up(self._listening)
        self._thread.join(_STOP)

    @property
    def has_ended(self) -> bool:
        """True if the listener was stopped, or lost its connection while `is_wanted` returned False."""
        return self._stop.is_set()

    def _loop(self) -> None:
        retry = RetryLoop(f"listening for {self._what}", self._stop)
        while not self._stop.is_set() and (connected := retry.run(self._connect)) is not None:
            raw, closing = connected
            with closing:
                self._listen(raw)

    def _connect(self) -> tuple[psycopg.Connection[Any], ExitStack] | None:
        """Return a listening connection, and the stack that closes it.

        Return None if a pooler is in front of the server.
        """
        with ExitStack() as closing:
            raw = closing.enter_context(self._connect_alone())
            if not is_direct(raw):
                log.info("a pooler is in front of the server: %s of other processes are found by polling", self._what)
                return None
            self._execute(raw, self._statement)
            if self._greeting is not None:
                self._execute(raw, self._greeting)
            return raw, closing.pop_all()

    def _listen(self, raw: psycopg.Connection[Any]) -> None:
        """Pass on notifications until `stop` is called or the connection is lost."""
        asked_at = time.monotonic()
        try:
            self._listening = raw
            self._heard("")  # makes up for notifications missed before the LISTEN
            while not self._stop.is_set():
                for notify in raw.notifies(timeout=min(_LOOK, self._patience / 2)):
                    self._look_for(notify.payload)
                if time.monotonic() - asked_at > self._patience:
                    self._execute(raw, self._statement)  # check that the server answers
                    asked_at = time.monotonic()
        except psycopg.Error as error:
            if not self._is_wanted():
                self._stop.set()
            elif not self._stop.is_set():
                log.warning("the listening connection for %s was lost, and is opened again: %s", self._what, error)
                self._stop.wait(_PAUSE)
        finally:
            with self._lock:
                self._listening = None

    def _execute(self, raw: psycopg.Connection[Any], statement: sql.Composed) -> None:
        """Execute a statement and commit. Pass on the notifications that arrive with the answer.

        Without a handler, older versions of psycopg drop these notifications. One of them may be the reply to a
        greeting.
        """
        raw.add_notify_handler(self._on_notify)
        raw.execute(statement)
        raw.commit()
        raw.remove_notify_handler(self._on_notify)

    def _on_notify(self, notify: psycopg.Notify) -> None:
        self._heard(notify.payload)
