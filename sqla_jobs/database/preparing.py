"""Connections of the library's own: what each is told before it is used, and which are of no more use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, LiteralString

import psycopg

from sqla_jobs.database.driver import bound
from sqla_jobs.database.timeouts import connect_within, keep_alive

PLANNED_ANEW: LiteralString = "SET plan_cache_mode = force_custom_plan"
"""Each time a statement is executed: a plan made on an empty table, and kept, might scan for ever."""
PLANNED_ONCE: LiteralString = (
    "SET plan_cache_mode = force_generic_plan; SET jit = off; "
    "SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off"
)
"""Once, and kept, which spares a third of a short statement's time. For statements that say themselves which rows they
look up: a plan that is kept knows no numbers, so scans, bitmaps and sorts are off."""
_OF_NO_MORE_USE = ("25006", "0A000")
"""SQLSTATEs on which to connect anew: of a server that takes no writes (a standby, such as the old primary after a
failover), and of what was prepared before a column changed its type."""


def prepared(
    connect: Callable[[], psycopg.Connection[Any]],
    *,
    patience: float,
    planning: LiteralString = PLANNED_ANEW,
    name: str = "sqla-jobs worker",
) -> psycopg.Connection[Any]:
    """A new connection, called `name` in pg_stat_activity unless the application names its own.

    Its statements are prepared, and planned as `planning` says. Behind a pooler, which may give the server's
    session to somebody else, nothing is prepared and nothing set. Neither connecting nor a statement waits in
    silence for longer than `patience` seconds.
    """
    connection = connect_within(patience, connect)
    try:
        bound(connection, patience)
        keep_alive(connection, patience)
        connection.execute("SET client_encoding TO 'UTF8'")  # which can say all that a task may; poolers know it
        if is_direct(connection):
            connection.execute(planning)
            if not connection.info.parameter_status("application_name"):
                connection.execute("SELECT set_config('application_name', %s, false)", [name])
        else:
            connection.prepare_threshold = None
        connection.commit()
    except BaseException:
        connection.close()
        raise
    return connection


def is_direct(connection: psycopg.Connection[Any]) -> bool:
    """Whether no pooler stands before the server: its process is another one."""
    found = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    return found is not None and found[0] == connection.info.backend_pid


def is_useless_after(error: BaseException) -> bool:
    """Whether a connection that raised this is of no more use, although it is not lost."""
    return getattr(error, "sqlstate", None) in _OF_NO_MORE_USE
