"""Connections of the library's own, made as the application makes its."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, LiteralString

import psycopg
from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.pool import QueuePool

from sqla_jobs.database.driver import bound
from sqla_jobs.database.timeouts import connect_within, keep_alive
from sqla_jobs.errors import ConfigurationError

log = logging.getLogger("sqla_jobs.worker")

REMEDY = "give a create_engine('postgresql+psycopg://…') or a sessionmaker of one"

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


def check_engine(engine: Engine) -> Engine:
    """The same, or a `ConfigurationError` where it is not one of PostgreSQL through psycopg 3, synchronous."""
    dialect = engine.dialect
    if (dialect.name, dialect.driver) != ("postgresql", "psycopg") or dialect.is_async:
        kind = "an asynchronous " if dialect.is_async else ""
        raise ConfigurationError(
            f"the engine is {kind}{dialect.name}+{dialect.driver}; workers need PostgreSQL through psycopg 3: {REMEDY} "
            "(jobs may be enqueued through any driver of PostgreSQL)"
        )
    return engine


def is_asynchronous(kind: type[Any]) -> bool:
    """Whether a class is one of SQLAlchemy's asyncio, which is not imported for that: it needs greenlet."""
    return any(base.__module__.startswith("sqlalchemy.ext.asyncio") for base in kind.__mro__)


def by_psycopg(app: Engine) -> Engine:
    """The engine itself, or where it is of another driver, or asynchronous, a new one of the same address."""
    is_psycopg = app.dialect.driver == "psycopg" and not app.dialect.is_async
    return app if is_psycopg else create_engine(app.url.set(drivername="postgresql+psycopg"))


def own_engine(
    app: Engine,
    *,
    patience: float,
    most: int,
    planning: LiteralString = PLANNED_ANEW,
    name: str = "sqla-jobs worker",
) -> Engine:
    """A small new engine, of `most` connections, that connects as `app` does, whatever that one's settings are.

    Its connections are called `name` in pg_stat_activity, unless the application names its own.

    Statements commit one by one under READ COMMITTED. They are prepared, and planned as `planning` says.
    Behind a pooler, which may give the server's session to somebody else, nothing is prepared and nothing set.
    Neither connecting nor a statement waits in silence for longer than `patience` seconds, and a
    connection that is of no more use, such as one to a server that turns out to be read-only, is given up.
    """
    engine = _connecting_as(app, "AUTOCOMMIT", patience, planning, most, name)
    with engine.connect() as connection:
        default = connection.scalar(select(func.current_setting("default_transaction_isolation")))
    if default != "read committed":
        engine.dispose()
        engine = _connecting_as(app, "READ COMMITTED", patience, planning, most, name)
        event.listen(engine, "begin", partial(_limit_idling, patience))
    return engine


def close_idle(engine: Engine) -> None:
    """Close the connections that nobody uses now; they are made anew when they are needed."""
    pool = engine.pool
    for _ in range(pool.checkedin() if isinstance(pool, QueuePool) else 0):
        with engine.connect() as connection:
            connection.invalidate()


def close_engine(engine: Engine) -> None:
    """Close its connections: those that are in use, by a thread that has not ended yet, when they are given back."""

    def close(connection: object, record: Any) -> None:
        record.invalidate()

    event.listen(engine.pool, "checkin", close)
    engine.dispose()


def warn_of_small_pool(app: Engine, threads: int) -> None:
    """Say so where transactional tasks in that many threads may wait in vain for a connection."""
    pool = app.pool
    overflow: int = getattr(pool, "_max_overflow", -1)
    if isinstance(pool, QueuePool) and overflow >= 0 and pool.size() + overflow < threads:
        log.warning(
            "the engine's pool gives out %d connections, but %d jobs may run at once, each with a session: "
            "create_engine(…, pool_size=%d), or run fewer",
            pool.size() + overflow,
            threads,
            threads,
        )


def _connecting_as(
    app: Engine, isolation: Any, patience: float, planning: LiteralString, most: int, name: str
) -> Engine:
    source = check_engine(app).pool.recreate()

    def borrow() -> Any:
        borrowed = source.connect()
        borrowed.detach()
        return borrowed.dbapi_connection

    def connect() -> Any:
        connection = connect_within(patience, borrow)
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

    engine = create_engine(
        app.url,
        creator=connect,
        pool_size=most,
        max_overflow=0,
        pool_timeout=patience,
        pool_reset_on_return=None,
        isolation_level=isolation,
    )
    event.listen(engine, "handle_error", _give_up_if_useless)
    return engine


def is_direct(connection: psycopg.Connection[Any]) -> bool:
    """Whether no pooler stands before the server: its process is another one."""
    found = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    return found is not None and found[0] == connection.info.backend_pid


def is_useless_after(error: BaseException) -> bool:
    """Whether a connection that raised this is of no more use, although it is not lost."""
    return getattr(error, "sqlstate", None) in _OF_NO_MORE_USE


def _give_up_if_useless(context: Any) -> None:
    if is_useless_after(context.original_exception):
        context.is_disconnect = True


def _limit_idling(patience: float, connection: Connection) -> None:
    """A process that vanishes before its COMMIT holds its locks no longer than `patience`."""
    limit = func.set_config("idle_in_transaction_session_timeout", f"{1000 * patience:.0f}", True)
    connection.execute(select(limit))
