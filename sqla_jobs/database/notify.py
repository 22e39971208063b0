"""Notifications to workers after a commit, so that workers need not wait for their next poll.

Notifications are sent by a thread with its own connection, never in the caller's transaction, since NOTIFY makes
commits wait for one another. A lost message delays a job until the next poll at most.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Iterable
from functools import cache, lru_cache, partial
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy import event
from sqlalchemy.orm import Session, object_session

from sqla_jobs.database.commits import committed_by, listen_to_sessions, on_commit, on_release
from sqla_jobs.database.driver import ask, driver
from sqla_jobs.database.engines import by_psycopg, own_engine
from sqla_jobs.database.per_engine import PerEngine
from sqla_jobs.database.sharding import in_shard_of
from sqla_jobs.database.subscribers import SCHEDULES, notify_here
from sqla_jobs.rules.error_text import message_of
from sqla_jobs.rules.every import Every

log: logging.Logger = logging.getLogger("sqla_jobs.database.notify")

_APART = 0.01
"""The shortest time between two messages from one process, in seconds. Commits in between share one message."""
_IDLE = 30.0
"""After this many seconds without a message, the thread and the connection end. The next message starts new ones."""
_PATIENCE = 10.0
"""Seconds of silence after which the server is considered unavailable."""
_WARN_AGAIN = 60.0
"""Seconds between warnings that no message can be sent."""
_EXIT = 1.0
"""How many seconds a program that ends right after its commit may spend on the last message."""


def notify(connection: sa.Connection, channel: str, queues: Iterable[str]) -> None:
    """Tell listeners on other connections about jobs in these queues; "" means every queue."""
    for queue in queues:
        connection.execute(sa.select(sa.func.pg_notify(channel, queue)))


def _send(engine: sa.Engine, messages: Iterable[tuple[str, str]]) -> None:
    """Notify listeners. The commit is immediate and does not wait for the disk, since no row is written."""
    with engine.connect() as connection:
        try:
            ask(driver(connection), _question(frozenset(messages)), _PATIENCE)
        except psycopg.Error:
            connection.invalidate()
            raise


@lru_cache(maxsize=64)
def _question(messages: frozenset[tuple[str, str]]) -> str:
    rows = [sql.SQL("({}, {})").format(channel, queue) for channel, queue in sorted(messages)]
    # a column for each message would be refused: a row has at most 1,664
    question = sql.SQL(
        "SELECT set_config('synchronous_commit', 'off', true), count(pg_notify(m.channel, m.queue)) "
        "FROM (VALUES {}) m (channel, queue)"
    ).format(sql.SQL(", ").join(rows))
    return question.as_string(None)


def after_commit(session: Session, entity: type[Any], channel: str, queue: str) -> None:
    """Notify the workers of `queue` once the session's outermost transaction commits; "" means every queue.

    "" is for changes of jobs that exist. After a rollback of these, workers are notified too: they have skipped the
    jobs while these were locked.
    """
    call = partial(_notify_listeners, session, entity, channel, queue)
    on_commit(session, entity, call, once=(entity, channel, queue))
    if not queue:
        on_release(session, entity, call, once=(entity, channel))


def after_release(session: Session, entity: type[Any], channel: str, queue: str) -> None:
    """Notify the workers of `queue` once the session frees a job there that it has locked: workers have skipped it.

    If the session's transaction, or the current savepoint, is rolled back, all workers are notified, since the job may
    have been in another queue before.
    """
    after_commit(session, entity, channel, queue)
    on_release(session, entity, partial(_notify_listeners, session, entity, channel, ""), once=(entity, channel))


def tell_of_schedules(entity: type[Any], job: type[Any], channel: str) -> None:
    """From now on, notify clocks when sessions change rows of `entity`."""
    _listen(entity, ("after_insert", "after_update", "after_delete"), job, channel, SCHEDULES)


def tell_of_jobs(job: type[Any], channel: str) -> None:
    """From now on, notify workers when sessions change or delete job objects, since other jobs may start then."""
    listen_to_sessions()
    _listen(job, ("after_update", "after_delete"), job, channel, "")


def _listen(entity: type[Any], kinds: Iterable[str], job: type[Any], channel: str, what: str) -> None:
    def changed(mapper: object, connection: object, row: Any) -> None:
        if (session := object_session(row)) is not None:
            with in_shard_of(session, row):
                after_commit(session, job, channel, what)

    for kind in kinds:
        event.listen(entity, kind, changed)


def _notify_listeners(session: Session, entity: type[Any], channel: str, queue: str) -> None:
    if (engine := committed_by(session, entity)) is not None:
        notify_here(channel, queue)
        _notifier(engine).send(engine, channel, queue)


@cache
def _prepare() -> None:
    """Prepare for the program's exit."""
    atexit.register(_flush_all)


class _Notifier:
    """Sends this process's messages to one database."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: set[tuple[str, str]] = set()
        self._there_is = threading.Event()
        self._sent = threading.Event()
        self._thread: threading.Thread | None = None
        self._hopeless_until = 0.0
        self._warning = Every(_WARN_AGAIN)

    def send(self, app: sa.Engine, channel: str, queue: str) -> None:
        """Send a message soon, over a connection like those of `app`. Return immediately, and never raise.

        The caller has already committed.
        """
        with self._lock:
            if self._thread is not None or self._start(app):
                self._waiting.add((channel, queue))
                if not self._there_is.is_set():
                    self._sent.clear()
                    self._there_is.set()

    def _start(self, app: sa.Engine) -> bool:
        if time.monotonic() < self._hopeless_until:
            return False
        thread = threading.Thread(target=self._loop, args=(app,), name="sqla_jobs-wakeup", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the interpreter is exiting, or the system allows no more threads
            self._failed(error)
            return False
        self._thread = thread
        return True

    def flush(self, timeout: float) -> None:
        """Wait until the pending messages are sent."""
        if self._thread is not None:
            self._sent.wait(timeout)

    def _loop(self, app: sa.Engine) -> None:
        try:
            engine = own_engine(by_psycopg(app), patience=_PATIENCE, most=1, name="sqla-jobs wakeup")
            engine.connect().close()
        except Exception as error:  # noqa: BLE001 - the application's way of connecting may raise anything
            self._failed(error)
            self._hopeless_until = time.monotonic() + _IDLE
            while not self._give_up():
                self._take()
            return
        while self._there_is.wait(_IDLE) or not self._give_up():
            messages = self._take()
            try:
                if messages:
                    _send(engine, messages)
            except Exception as error:  # noqa: BLE001 - sending may raise anything too
                self._failed(error)
            with self._lock:
                if not self._there_is.is_set():
                    self._sent.set()
            time.sleep(_APART)
        engine.dispose()

    def _failed(self, error: Exception) -> None:
        level = logging.WARNING if self._warning.is_over() else logging.DEBUG
        log.log(level, "workers are not told of committed jobs, and find them by polling: %s", message_of(error))

    def _take(self) -> set[tuple[str, str]]:
        with self._lock:
            self._there_is.clear()
            messages, self._waiting = self._waiting, set()
            return messages

    def _give_up(self) -> bool:
        """End the thread, unless another message has arrived."""
        with self._lock:
            if self._there_is.is_set():
                return False
            self._thread = None
            self._sent.set()
            return True


_notifiers = PerEngine(_Notifier)


def _notifier(engine: sa.Engine) -> _Notifier:
    _prepare()
    return _notifiers.of(engine)


def _flush_all() -> None:
    deadline = time.monotonic() + _EXIT
    for notifier in _notifiers.all():
        notifier.flush(max(0.0, deadline - time.monotonic()))
