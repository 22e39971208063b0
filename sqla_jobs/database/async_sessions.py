"""The sessions of coroutine tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool
from sqlalchemy.util import greenlet_spawn

from sqla_jobs.database.engines import (
    IdleConnections,
    at_most,
    by_psycopg,
    check_translation,
    checked_isolation,
    is_asynchronous,
)
from sqla_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

    AsyncBind = AsyncEngine | Callable[[], AsyncSession]
else:
    AsyncBind = object

_REMEDY = "give create_async_engine('postgresql+psycopg://…') or an async_sessionmaker of one"
_MOST = 20
"""Connections of an engine that is made here, where the other one has no limit. Coroutines wait for one."""
_ASYNC = "sqla_jobs.async_session"
"""Where the `info` of a session has the `AsyncSession` around it, while its run lasts."""


class AsyncSessions:
    """New sessions of an asynchronous engine: that of the application, or one made of the address of its own.

    An engine that is made here has a pool as large as the other one's, if that is limited.
    """

    def __init__(self, bind: AsyncBind | None, app: Engine, isolation: str, entity: type[Any]) -> None:
        """`isolation` is the level of an engine that is made here. Raises `ConfigurationError` for autocommit."""
        from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

        self.is_made: bool = bind is None
        """Whether the engine was made here, and is nobody else's."""
        chosen = _engine_like(app, isolation) if bind is None else bind
        self._make: Callable[[], Any]
        if isinstance(chosen, AsyncEngine):
            self._make = async_sessionmaker(chosen)
        elif callable(chosen):
            self._make = chosen
        else:
            raise ConfigurationError(
                f"async_bind must be an AsyncEngine or make AsyncSessions, got {bind!r}: {_REMEDY}"
            )
        self._engine = engine_of(self._make, entity)
        self.isolation: str = isolation if self.is_made else _isolation_of(self._engine)
        """The isolation level of the sessions."""
        self._idle = IdleConnections(self._engine)

    def begin(self) -> Session:
        """The session below a new `AsyncSession`, for use in a greenlet of SQLAlchemy's."""
        made = self._make()
        session: Session = made.sync_session
        vars(session).pop("get_bind", None)  # the factory may give the same session again
        session.info[_ASYNC] = made
        return session

    def at_most(self, wanted: int) -> int:
        """How many of so many connections they get at once."""
        return at_most(self._engine, wanted)

    async def close(self) -> None:
        """Close the connections of the engine, which belong to the loop that ends."""
        await greenlet_spawn(self._engine.dispose)

    async def close_idle(self) -> None:
        """Close those that nobody uses now."""
        await greenlet_spawn(self._idle.close)


def around(session: Session) -> Any:
    """The `AsyncSession` around a session that `AsyncSessions` gave, until its run is over."""
    return session.info[_ASYNC]


def end_run(session: Session) -> None:
    """From now on one from `AsyncSessions` begins no transaction, also for a coroutine that goes on."""
    if session.info.pop(_ASYNC, None) is not None:
        vars(session)["get_bind"] = _refuse


def _refuse(*_: object, **__: object) -> NoReturn:
    """In the place of a session's `get_bind`, which it asks before each statement and each flush."""
    raise InvalidRequestError(
        "the run that this AsyncSession was given to is over, and what is written now could not be part of it: "
        "await all that uses the session before the task returns, let CancelledError through, "
        "or open a session of your own"
    )


def synchronous_engine(bind: AsyncBind, entity: type[Any]) -> Engine:
    """A synchronous engine of the same database."""
    from sqlalchemy.ext.asyncio import AsyncEngine

    engine = bind.sync_engine if isinstance(bind, AsyncEngine) else engine_of(bind, entity)
    check_translation(engine, entity)  # another driver gets an engine of its own, which would not translate
    return by_psycopg(engine)


def engine_of(make: Callable[[], Any], entity: type[Any]) -> Engine:
    """What is below the engine of asynchronous sessions. Raises `ConfigurationError` where they are something else."""
    made = make()
    if not is_asynchronous(type(made)):
        raise ConfigurationError(f"async_bind must make AsyncSessions, and makes a {type(made).__name__}: {_REMEDY}")
    found: Engine | Connection = made.sync_session.get_bind(entity)
    check_translation(found, entity)
    return found.engine


def _isolation_of(engine: Engine) -> str:
    """That of a new connection: those in the engine's pool may belong to a loop that runs."""

    def ask() -> str:
        pool = engine.pool.recreate()
        try:
            with closing(Connection(engine, pool.connect())) as connection:
                return checked_isolation(connection)
        finally:
            pool.dispose()

    with ThreadPoolExecutor(1) as thread:  # the caller's may run a loop
        return thread.submit(asyncio.run, greenlet_spawn(ask)).result()


def _engine_like(app: Engine, isolation: str) -> AsyncEngine:
    from sqlalchemy.ext.asyncio import create_async_engine

    pool = app.pool
    overflow: int = getattr(pool, "_max_overflow", -1)
    sizes = {"pool_size": _MOST, "max_overflow": 0}
    if isinstance(pool, QueuePool) and overflow >= 0:
        sizes = {"pool_size": pool.size(), "max_overflow": overflow}
    address = app.url.set(drivername="postgresql+psycopg")
    level: Any = isolation
    return create_async_engine(address, isolation_level=level, **sizes)
