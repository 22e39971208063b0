"""The library's own connections, opened in the same way as the application's."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, LiteralString

import psycopg
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import QueuePool

from sqla_jobs.database.driver import ReadOnly, driver, execute
from sqla_jobs.database.preparing import PLANNED_ANEW, is_useless_after, prepared
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.rules.wording import did_you_mean

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_OPTIONS = {"ssl": "sslmode", "async_fallback": None, "prepared_statement_cache_size": None}
"""Options in asyncpg addresses and their psycopg names; None if psycopg has no such option."""

_IS_STRICT = "sqla_jobs: is strict"
"""The key in a connection's `info` under which it is stored whether the default isolation is not READ COMMITTED."""

REMEDY = "give a create_engine('postgresql+psycopg://…') or a sessionmaker of one"


def check_engine(engine: sa.Engine) -> sa.Engine:
    """Return the engine.

    Raise `ConfigurationError` unless the engine is synchronous and uses PostgreSQL through psycopg 3.
    """
    dialect = engine.dialect
    if (dialect.name, dialect.driver) != ("postgresql", "psycopg") or dialect.is_async:
        kind = "an asynchronous " if dialect.is_async else ""
        raise ConfigurationError(
            f"the engine is {kind}{dialect.name}+{dialect.driver}; workers need PostgreSQL through psycopg 3: {REMEDY} "
            "(jobs may be enqueued through any driver of PostgreSQL)"
        )
    return engine


def check_translation(bind: sa.Engine | sa.Connection, entity: type[Any]) -> None:
    """Raise `ConfigurationError` if SQLAlchemy translates the jobs' schema, since workers do not translate it."""
    schema = entity.__table__.schema
    translated = (bind.get_execution_options().get("schema_translate_map") or {}).get(schema, schema)
    if translated != schema:
        raise ConfigurationError(
            f"schema_translate_map puts {translated!r} in the place of the schema {schema!r} of the jobs: sessions "
            "enqueue them there, and workers and clocks, whose statements it does not change, do not find them. "
            "Give the jobs a schema that the map does not name, such as Jobs(…, schema='public')"
        )


def checked_isolation(connection: sa.Connection) -> str:
    """Return the isolation level of an application's connection. Raises `ConfigurationError` for autocommit."""
    level = connection.get_isolation_level()
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise ConfigurationError(
            "the bound sessions are in AUTOCOMMIT, so a task's writes and its completion could never be one "
            "commit: bind an engine without isolation_level='AUTOCOMMIT'"
        )
    return level


def is_asynchronous(kind: type[Any]) -> bool:
    """Return whether a class is from `sqlalchemy.ext.asyncio`. That module is not imported, since it needs greenlet."""
    return any(base.__module__.startswith("sqlalchemy.ext.asyncio") for base in kind.__mro__)


def by_psycopg(app: sa.Engine) -> sa.Engine:
    """Return the engine. If it is asynchronous or for another driver, return a new one with the same address.

    The new one has the `connect_args` of an engine for asynchronous psycopg connections.
    """
    is_psycopg = app.dialect.driver == "psycopg"
    if is_psycopg and not app.dialect.is_async:
        return app
    return sa.create_engine(address_by_psycopg(app.url), connect_args=connect_args(app) if is_psycopg else {})


def connect_args(engine: sa.Engine) -> dict[str, Any]:
    """Return the `connect_args=` of an engine for psycopg, for another engine.

    There are none if it has a `creator=`. SQLAlchemy keeps them only in the function with which it connects.
    """
    connect: Any = getattr(engine.pool, "_creator", None)
    parameters = inspect.getclosurevars(connect).nonlocals.get("cparams", {}) if inspect.isfunction(connect) else {}
    of_address = engine.dialect.create_connect_args(engine.url)[1]
    of_kind = {"cursor_factory"}  # a class for synchronous or for asynchronous connections
    return {
        name: value
        for name, value in parameters.items()
        if name not in of_kind and (name not in of_address or of_address[name] != value)
    }


def address_by_psycopg(url: sa.URL) -> sa.URL:
    """Return the address for psycopg 3, with asyncpg's options renamed.

    Raises `ConfigurationError` for an option that psycopg does not know.
    """
    own = url.set(drivername="postgresql+psycopg")
    if url.drivername.startswith("postgresql+psycopg"):
        return own
    known = {one.keyword.decode() for one in psycopg.pq.Conninfo.get_defaults()}
    query = {name: value for given, value in url.query.items() if (name := _OPTIONS.get(given, given)) is not None}
    if unknown := query.keys() - known:
        name = min(unknown)
        raise ConfigurationError(
            f"the address has the option {name!r:.60}, which psycopg 3 does not know, and workers connect through that"
            f"{did_you_mean(name, known)}; write it without, or bind an engine of their own, "
            "jobs.bind(create_engine('postgresql+psycopg://…'), async_bind=…)"
        )
    return own.set(query=query)


def own_engine(
    app: sa.Engine,
    *,
    patience: float,
    most: int,
    planning: LiteralString = PLANNED_ANEW,
    name: str = "sqla-jobs worker",
) -> sa.Engine:
    """Return a new engine with at most `most` connections. It connects like `app`, but has settings of its own."""
    source = check_engine(app).pool.recreate()

    def borrow() -> Any:
        borrowed = source.connect()
        borrowed.detach()
        return borrowed.dbapi_connection

    return engine_of(borrow, patience=patience, most=most, planning=planning, name=name)


def engine_of(
    connect: Callable[[], psycopg.Connection[Any]],
    *,
    patience: float,
    most: int,
    planning: LiteralString = PLANNED_ANEW,
    name: str = "sqla-jobs worker",
) -> sa.Engine:
    """Return an engine with at most `most` connections, which `connect` makes.

    Its connections are called `name` in pg_stat_activity, unless the application names its own connections.

    Statements run under READ COMMITTED. If that is the database's default, each statement is its own transaction;
    otherwise each `begin()` block is one. Statements are prepared, and planned according to `planning`. Behind a
    pooler, which may hand the server's session to other clients, no statement is prepared and nothing is set.
    Connecting and statements tolerate at most `patience` seconds of silence. A connection is closed once it has become
    useless, such as after its server has become read-only.
    """
    engine = sa.create_engine(
        "postgresql+psycopg://",
        creator=partial(prepared, connect, patience=patience, planning=planning, name=name),
        pool_size=most,
        max_overflow=0,
        pool_timeout=patience,
        pool_reset_on_return=None,
        isolation_level="AUTOCOMMIT",
    )
    event.listen(engine, "connect", partial(_learn_isolation, engine, partial(_begin, patience)))
    event.listen(engine, "handle_error", _give_up_if_useless)
    return engine


def fetched(connection: sa.Connection, statement: str, values: Sequence[Any]) -> list[Any]:
    """Return the rows of a statement with numbered parameters, sent below SQLAlchemy on one of our engines.

    Raises SQLAlchemy's errors, as other statements do.
    """
    if not connection.in_transaction():
        connection.begin()  # as SQLAlchemy does at a connection's first statement
    try:
        return execute(driver(connection), statement, values).fetchall()
    except psycopg.Error as error:
        # what SQLAlchemy does after an error: if the connection is lost or useless, the pool replaces all of its own
        connection._handle_dbapi_exception(error, statement, None, None, None)


def check_writable(connection: sa.Connection) -> None:
    """Raise an error as for a server that is away if it accepts no writes, as a standby does."""
    question = "SELECT current_setting('transaction_read_only')"
    if fetched(connection, question, []) == [("on",)]:
        error = ReadOnly("the server is read-only, as a standby is")
        connection._handle_dbapi_exception(error, question, None, None, None)


class IdleConnections:
    """An engine's connections that nobody is using."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._are_there = True
        event.listen(engine, "checkin", self._on_checkin)

    def _on_checkin(self, connection: object, record: object) -> None:
        if connection is not None:  # None means that the connection was invalidated
            self._are_there = True

    def close(self) -> None:
        """Close the idle connections. The call is cheap if no connection is idle.

        New connections are opened when needed.
        """
        pool = self._engine.pool
        if not self._are_there or not isinstance(pool, QueuePool):
            return
        self._are_there = False
        for _ in range(pool.checkedin()):
            with self._engine.connect() as connection:
                connection.invalidate()


@contextmanager
def for_itself(engine: sa.Engine) -> Generator[psycopg.Connection[Any]]:
    """Open a connection that is not reused afterwards."""
    connection = engine.connect()
    try:
        yield driver(connection)
    finally:
        connection.invalidate()
        connection.close()


def close_engine(engine: sa.Engine) -> None:
    """Close the engine's connections. A connection that a thread is still using closes when it is returned."""

    def close(connection: object, record: Any) -> None:
        record.invalidate()

    event.listen(engine.pool, "checkin", close)
    engine.dispose()


def at_most(engine: sa.Engine, wanted: int) -> int:
    """Return how many of the `wanted` connections the engine's pool will hand out at the same time."""
    pool = engine.pool
    overflow: int = getattr(pool, "_max_overflow", -1)
    return min(wanted, pool.size() + overflow) if isinstance(pool, QueuePool) and overflow >= 0 else wanted


def warn_of_small_pool(app: sa.Engine, threads: int) -> None:
    """Log a warning if the pool has fewer than `threads` connections. Transactional tasks may then wait in vain."""
    if (most := at_most(app, threads)) < threads:
        log.warning(
            "the engine's pool gives out %d connections, but %d jobs may run at once, each with a session: "
            "create_engine(…, pool_size=%d), or run fewer",
            most,
            threads,
            threads,
        )


def _give_up_if_useless(context: Any) -> None:
    if is_useless_after(context.original_exception):
        context.is_disconnect = True


def _learn_isolation(engine: sa.Engine, begin: Any, connection: psycopg.Connection[Any], record: Any) -> None:
    """Let `begin` begin transactions if the database's default isolation level does not suit single statements.

    Otherwise it is not called at all, which would double the time of an empty block.
    """
    try:
        is_strict = connection.execute("SHOW default_transaction_isolation").fetchone() != ("read committed",)
    except BaseException:
        connection.close()
        raise
    record.info[_IS_STRICT] = is_strict
    if is_strict and not event.contains(engine, "begin", begin):
        event.listen(engine, "begin", begin)


def _begin(patience: float, connection: sa.Connection) -> None:
    """If a process vanishes before its COMMIT, let it hold locks for at most `patience` seconds."""
    if not connection.info[_IS_STRICT]:
        return
    if driver(connection).autocommit:
        connection.exec_driver_sql("BEGIN ISOLATION LEVEL READ COMMITTED")
    limit = sa.func.set_config("idle_in_transaction_session_timeout", f"{1000 * patience:.0f}", True)
    connection.execute(sa.select(limit))
