"""Outages of a server: the errors that mean one, and what is said and done until a host accepts writes again."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa

from sqla_jobs.database.driver import NoAnswer
from sqla_jobs.database.engines import connect_args
from sqla_jobs.database.refusals import cause_of
from sqla_jobs.rules.error_text import message_of
from sqla_jobs.rules.wording import duration

T = TypeVar("T")
log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_RESTART = 60.0
"""Seconds for which a process that starts tries to reach the database."""
_UNLIMITED = 130.0
"""Seconds that psycopg waits for each host without a connect_timeout."""
_AGAIN = 0.5
"""Seconds between two tries."""
_AWAY = ("25006", "57P01", "57P02", "57P03")
"""SQLSTATEs if the server accepts no writes, or has ended the connection because it stops, crashes or starts."""
_SAYS_AWAY = re.compile(
    "Is the server running|timeout expired|closed the connection unexpectedly|Connection reset by peer|"
    "the database system is |session is read-only|server is in hot standby mode"
)
"""What libpq says, if there is no SQLSTATE: nobody listens or answers, the server starts or stops, or is a standby.

A server with messages in another language is not understood while it starts or stops.
"""
_SLOW = (
    "the address has %d hosts, and one that is frozen takes up to connect_timeout=%g of the %g s for a connection, so "
    "the others are not tried: write connect_timeout=%d, and a lease that is longer if that is still too much"
)
_EACH_HOST = re.compile(r"\n- host: ")
_LAST_COMMIT = "SELECT extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8"


def is_outage(error: BaseException) -> bool:
    """Return whether, when this error was raised, no host accepted writes, which may pass.

    A wrong password or an unknown database is none, also on one of several hosts.
    """
    cause = cause_of(error)
    if not isinstance(cause, psycopg.OperationalError):
        return False
    if isinstance(cause, NoAnswer) or cause.sqlstate in _AWAY:
        return True
    summary, *hosts = _EACH_HOST.split(message_of(cause))
    return all(_SAYS_AWAY.search(one) for one in hosts or [summary])


def reached(connect: Callable[[], T], stop: threading.Event) -> T:
    """Return `connect()`. During an outage, try again for a minute, or until `stop` is set."""
    until, say = time.monotonic() + _RESTART, log.warning
    while True:
        try:
            return connect()
        except Exception as error:
            if not is_outage(error) or time.monotonic() > until or stop.wait(_AGAIN):
                raise
            say("no host accepts writes now, tried again for %g s: %s", _RESTART, message_of(cause_of(error)))
            say = log.debug


def parameters_of(app: sa.Engine) -> dict[str, Any]:
    """Return the parameters with which an engine for psycopg connects. They are unknown if it has a `creator=`."""
    return {**app.dialect.create_connect_args(app.url)[1], **connect_args(app)}


def warn_of_slow_hosts(app: sa.Engine, patience: float) -> None:
    """Log a warning if one host that does not answer leaves no time to try the others within `patience` seconds."""
    given = parameters_of(app)
    defaults = {one.keyword: one.val for one in psycopg.pq.Conninfo.get_defaults()}
    number = len(str(given.get("host", "")).split(","))
    each = float(given.get("connect_timeout") or defaults.get(b"connect_timeout") or _UNLIMITED)
    if number > 1 and each * (number - 1) >= patience:
        log.warning(_SLOW, number, each, patience, max(2, int(patience / number)))


def told(app: sa.Engine, error: BaseException) -> str:
    """Return the message about an outage. A standby knows since when it lasts."""
    age = None
    address: dict[str, Any] = parameters_of(app) | {"target_session_attrs": "any"}
    with suppress(psycopg.Error), psycopg.connect(**address) as connection:
        (age,) = connection.execute(_LAST_COMMIT).fetchone() or (None,)
    since = "" if age is None else f"; the last commit that a standby has received was {duration(age)} ago"
    said = message_of(cause_of(error)).strip()
    return f"no host accepts writes now{since}: is the address right, and is the server up? The database says: {said}"
