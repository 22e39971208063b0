"""Time limits on waits for the server, so that no wait lasts forever.

A connection whose other end is gone (the host lost power, or a firewall dropped the connection) looks like one whose
server is busy. In either case, psycopg waits without a limit. With these limits, a wait ends if the silence lasts too
long.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from os import dup
from typing import Any, TypeVar

import psycopg

from sqla_jobs.database.driver import NoAnswer

T = TypeVar("T")

_PROBES = 3
"""The number of unanswered keepalive probes after which a connection is considered dead."""


def connect_within(patience: float, connect: Callable[[], T]) -> T:
    """Return the result of `connect()`.

    Raises `NoAnswer` after `patience` seconds; a connection that arrives later is closed. Also raises psycopg's error
    if `connect` raises an exit, which would end the loop that connects without a log line, or if no thread can start.

    `connect` runs in a thread, since name resolution and an application's creator can take any length of time.
    """
    attempt: Future[T] = Future()

    def run() -> None:
        try:
            attempt.set_result(connect())
        except Exception as error:  # noqa: BLE001 - raised in the waiting thread
            attempt.set_exception(error)
        except BaseException as error:  # noqa: BLE001 - such as `sys.exit`
            attempt.set_exception(psycopg.OperationalError(f"the application's way of connecting raised {error!r}"))

    try:
        threading.Thread(target=run, name="sqla_jobs-connect", daemon=True).start()
    except RuntimeError as error:
        raise psycopg.OperationalError(f"no thread to connect in: {error}") from error
    if not wait([attempt], patience).done:
        attempt.add_done_callback(_close)
        raise NoAnswer(f"no connection to the server within {patience:g} s")
    return attempt.result()


def _close(attempt: Future[Any]) -> None:
    if attempt.exception() is None:
        attempt.result().close()


def hang_up(connection: psycopg.Connection[Any]) -> None:
    """Immediately end another thread's wait for data on this connection. The connection is useless afterwards."""
    with _end_of(connection) as end:
        end.shutdown(socket.SHUT_RD)


def _end_of(connection: psycopg.Connection[Any]) -> socket.socket:
    return socket.socket(fileno=dup(connection.pgconn.socket))


def keep_alive(connection: psycopg.Connection[Any], patience: float) -> None:
    """Let the system detect within about 2 x `patience` seconds that an idle connection's other end is gone."""
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
            # each operating system has only some of these options
            if (option := getattr(socket, name, None)) is not None:
                end.setsockopt(socket.IPPROTO_TCP, option, value)
