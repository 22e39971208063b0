"""The settings for the library's own connections, and the errors after which a connection is useless."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, LiteralString

import psycopg

from sqla_jobs.database.driver import bound
from sqla_jobs.database.timeouts import connect_within, keep_alive

PLANNED_ANEW: LiteralString = "SET plan_cache_mode = force_custom_plan; SET jit = off"
"""Plan a statement at each execution. A cached plan that was made on an empty table might scan the table forever.

Compilation takes a quarter of a second at each execution whose estimated cost is high, for statements of milliseconds.
"""
PLANNED_ONCE: LiteralString = (
    "SET plan_cache_mode = force_generic_plan; SET jit = off; "
    "SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off"
)
"""Plan a statement once and cache the plan, which saves a third of a short statement's time.

This setting is for statements that look rows up by their keys. A cached plan does not know how many rows there are, so
sequential scans, bitmap scans and sorts are disabled.
"""
_READ_ONLY = "25006"
"""The SQLSTATE if the server accepts no writes: a standby, such as the old primary after a failover."""
_CHANGED_TYPE = ("0A000", "RevalidateCachedQuery")
"""The SQLSTATE, and the server's function, if a column's type has changed since a statement was prepared.

The SQLSTATE alone says that a feature is not supported, for example by Citus, and remains true on any connection.
"""


def prepared(
    connect: Callable[[], psycopg.Connection[Any]],
    *,
    patience: float,
    planning: LiteralString = PLANNED_ANEW,
    name: str = "sqla-jobs worker",
) -> psycopg.Connection[Any]:
    """Return a new connection, called `name` in pg_stat_activity unless the application names its connections.

    Its statements are prepared, and planned according to `planning`. Behind a pooler, which may hand the server's
    session to other clients, no statement is prepared and nothing is set. Connecting and statements tolerate at most
    `patience` seconds of silence.
    """
    connection = connect_within(patience, connect)
    try:
        bound(connection, patience)
        keep_alive(connection, patience)
        connection.execute("SET client_encoding TO 'UTF8'")  # UTF-8 can encode all text; poolers track this setting
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
    """Return whether no pooler is in front of the server. A pooler reports a process id that is not the server's."""
    found = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    return found is not None and found[0] == connection.info.backend_pid


def is_useless_after(error: BaseException) -> bool:
    """Return whether a connection that raised this error is useless, even though it is not lost."""
    if not isinstance(error, psycopg.Error):
        return False
    return error.sqlstate == _READ_ONLY or (error.sqlstate, error.diag.source_function) == _CHANGED_TYPE
