"""Waits for a server that come to an end: whatever it or the network does, nobody waits for ever.

A connection whose other end is gone (a host that lost its power, a firewall that forgot it) looks like one
whose server is thinking. psycopg waits for both without a limit; here only so long as something is heard.
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
"""Keepalive probes without an answer after which a connection is dead."""


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
