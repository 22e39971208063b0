"""Waits for a server that come to an end: whatever it or the network does, nobody waits for ever.

A connection whose other end is gone (a host that lost its power, a firewall that forgot it) looks like one
whose server is thinking. psycopg waits for both without a limit; here only so long as something is heard.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, wait
from os import dup
from typing import Any, TypeVar

import psycopg
from psycopg import capabilities
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

T = TypeVar("T")
log = logging.getLogger("sqla_jobs.database.engines")

_PROBES = 3
"""Keepalive probes without an answer after which a connection is dead."""


class NoAnswer(psycopg.OperationalError):
    """The server was silent for too long; the connection is closed."""


def connect_within(patience: float, connect: Callable[[], T]) -> T:
    """`connect()`, or `NoAnswer` after `patience` seconds: a connection that comes later is closed.

    In a thread, since looking up a host's name and all that an application's creator does can take any time.
    """
    attempt: Future[T] = Future()

    def run() -> None:
        try:
            attempt.set_result(connect())
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            attempt.set_exception(error)

    threading.Thread(target=run, name="sqla_jobs-connect", daemon=True).start()
    if not wait([attempt], patience).done:
        attempt.add_done_callback(_close)
        raise NoAnswer(f"no connection to the server within {patience:g} s")
    return attempt.result()


def _close(attempt: Future[Any]) -> None:
    if attempt.exception() is None:
        attempt.result().close()


def bound(connection: psycopg.Connection[Any], patience: float) -> None:
    """From now on each wait of `connection` ends with `NoAnswer` after `patience` seconds without a sign of life.

    What counts is silence: a large batch that is on its way, or an answer that trickles in, may take its time.
    """
    plain = connection.wait

    def bounded(gen: Any, *args: Any, **options: Any) -> Any:
        try:
            return plain(_listening(gen, connection, patience), *args, **options)
        except NoAnswer:
            _abandon(connection, patience)
            raise

    vars(connection)["wait"] = bounded


def ask(connection: psycopg.Connection[Any], question: str, patience: float | None = None) -> list[PGresult]:
    """The answers to one or more statements, sent together, on a connection that is somebody else's.

    Raises the error of the statement that failed, after which the server leaves out the rest, or, where a
    `patience` is given, `NoAnswer` after so many seconds of silence.
    """
    server = connection.pgconn
    server.send_query(question.encode(connection.info.encoding))
    while server.flush():
        _wait(connection, select.POLLIN | select.POLLOUT, patience)
        server.consume_input()
    answers: list[PGresult] = []
    while True:
        while server.is_busy():
            _wait(connection, select.POLLIN, patience)
            server.consume_input()
        if (answer := server.get_result()) is None:
            break
        answers.append(answer)
    for answer in answers:
        if answer.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            raise error_from_result(answer, connection.info.encoding)
    return answers


def _wait(connection: psycopg.Connection[Any], events: int, patience: float | None) -> None:
    look = select.poll()
    look.register(connection.pgconn.socket, events)
    if patience is None:
        look.poll()
    elif not look.poll(1000 * patience):
        _abandon(connection, patience)
        raise NoAnswer(f"no answer from the server for {patience:g} s")


def _listening(gen: Any, connection: psycopg.Connection[Any], patience: float) -> Generator[Any, Any, Any]:
    """What psycopg's own generator yields and returns. Raises `NoAnswer`.

    What the socket is ready for is asked anew: psycopg 3.2 says "ready" also when its interval is over.
    """
    try:
        heard_at, wanted = time.monotonic(), next(gen)
        while True:
            ready = yield wanted
            if _is_ready(connection.pgconn.socket, wanted):
                heard_at = time.monotonic()
            elif time.monotonic() - heard_at > patience:
                raise NoAnswer(f"no answer from the server for {patience:g} s")
            wanted = gen.send(ready)
    except StopIteration as end:
        return end.value


def _is_ready(fileno: int, wanted: int) -> bool:
    look = select.poll()
    look.register(fileno, (wanted & 1 and select.POLLIN) | (wanted & 2 and select.POLLOUT))
    return bool(look.poll(0))


def _abandon(connection: psycopg.Connection[Any], patience: float) -> None:
    """Close, and ask the server to cancel what it still does there, so that its processes do not pile up.

    Before libpq 17 asking would hold up all threads, and without a limit: there it is left to the server.
    """
    if capabilities.has_cancel_safe():
        try:
            connection.cancel_safe(timeout=patience / 5)
        except psycopg.Error as error:
            log.debug("a statement that was given up could not be cancelled: %s", error)
    connection.close()


def hang_up(connection: psycopg.Connection[Any]) -> None:
    """Let a wait of another thread for something to read end at once; the connection is of no more use."""
    with _end_of(connection) as end:
        end.shutdown(socket.SHUT_RD)


def _end_of(connection: psycopg.Connection[Any]) -> socket.socket:
    return socket.socket(fileno=dup(connection.pgconn.socket))


def keep_alive(connection: psycopg.Connection[Any], patience: float) -> None:
    """Let the system find out within about twice `patience` seconds that the other end of an idle one is gone."""
    seconds = max(1, round(patience))
    with _end_of(connection) as end:
        if end.family == getattr(socket, "AF_UNIX", None):
            return
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in {
            "TCP_KEEPIDLE": seconds,
            "TCP_KEEPINTVL": max(1, seconds // _PROBES),
            "TCP_KEEPCNT": _PROBES,
            "TCP_USER_TIMEOUT": 1000 * seconds,
        }.items():
            if (option := getattr(socket, name, None)) is not None:  # each system has some of them
                end.setsockopt(socket.IPPROTO_TCP, option, value)
