"""The sessions for coroutine tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import sqlalchemy as sa
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.pool import QueuePool
from sqlalchemy.util import greenlet_spawn

from sqla_jobs.database.engines import (
    IdleConnections,
    at_most,
    by_psycopg,
    check_translation,
    checked_isolation,
    connect_args,
    is_asynchronous,
)
from sqla_jobs.database.session_classes import check_class, making
from sqla_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

    AsyncBind = AsyncEngine | Callable[[], AsyncSession]
else:
    AsyncBind = object

_REMEDY = "give create_async_engine('postgresql+psycopg://…') or an async_sessionmaker of one"
_MOST = 20
"""If the application's pool has no limit, an engine created here has this pool size. More coroutines have to wait."""
_ASYNC = "sqla_jobs.async_session"
"""The key in a session's `info` for the `AsyncSession` around it, during its run."""


class AsyncSessions:
    """Creates sessions on an asynchronous engine: the application's, or one created from the address of its engine.

    If the application's pool is limited, an engine created here has a pool of the same size.
    """

    def __init__(self, bind: AsyncBind | None, app: sa.Engine, isolation: str, entity: type[Any]) -> None:
        """Choose the engine. `isolation` is the level for an engine created here.

        Raises `ConfigurationError` for autocommit.
        """
        from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

        self.is_made: bool = bind is None
        """True if the engine was created here and is used only here."""
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
        """The sessions' isolation level."""
        self._idle = IdleConnections(self._engine)

    def sessions_of(self, kind: type[AsyncSession], task: str) -> Callable[[], Session]:
        """Return a function that creates an `AsyncSession` of the class `kind` and returns the `Session` inside it.

        Call that function in an SQLAlchemy greenlet. Raises `ConfigurationError` if the application's sessions are of
        another class than the one that `task` takes.
        """
        from sqlalchemy.ext.asyncio import AsyncSession

        make = self._make
        if kind is not AsyncSession:
            make = making(make, kind, task)
            check_class(make(), kind, task)
        return partial(self._begin, make)

    def _begin(self, make: Callable[[], Any]) -> Session:
        made = make()
        session: Session = made.sync_session
        vars(session).pop("get_bind", None)  # the factory may return the same session again
        session.info[_ASYNC] = made
        return session

    def at_most(self, wanted: int) -> int:
        """Return how many of the `wanted` connections the pool will hand out at the same time."""
        return at_most(self._engine, wanted)

    async def close(self) -> None:
        """Close the engine's connections, which belong to the event loop that is ending."""
        await greenlet_spawn(self._engine.dispose)

    async def close_idle(self) -> None:
        """Close the connections that nobody is using."""
        await greenlet_spawn(self._idle.close)


def around(session: Session) -> Any:
    """Return the `AsyncSession` around a session from `AsyncSessions`. The session's run must not have ended."""
    return session.info[_ASYNC]


def is_awaited(session: Session) -> bool:
    """Return whether a session is from `AsyncSessions`, and its run has not ended."""
    return _ASYNC in session.info


def read_anew(session: Session) -> None:
    """Reload the expired rows of a coroutine task's session, since reading their attributes cannot await the database.

    A row that no longer exists stays expired.
    """
    for row in list(session.identity_map.values()):
        if instance_state(row).expired:
            with suppress(InvalidRequestError):
                session.refresh(row)


def end_run(session: Session) -> None:
    """Forbid new transactions on a session from `AsyncSessions`, even for a coroutine that is still running."""
    if session.info.pop(_ASYNC, None) is not None:
        vars(session)["get_bind"] = _refuse


def _refuse(*_: object, **__: object) -> NoReturn:
    """Raise an error. This replaces a session's `get_bind`, which is called before each statement and flush."""
    raise InvalidRequestError(
        "the run of this AsyncSession is over, so a write could not be part of it any more: "
        "await everything that uses the session before the task returns, let CancelledError through, "
        "or open a session of your own"
    )


def synchronous_engine(bind: AsyncBind, entity: type[Any]) -> sa.Engine:
    """Return a synchronous engine for the same database."""
    from sqlalchemy.ext.asyncio import AsyncEngine

    engine = bind.sync_engine if isinstance(bind, AsyncEngine) else engine_of(bind, entity)
    check_translation(engine, entity)  # a new engine for another driver would not translate schemas
    return by_psycopg(engine)


def engine_of(make: Callable[[], Any], entity: type[Any]) -> sa.Engine:
    """Return the synchronous engine behind asynchronous sessions. Raises `ConfigurationError` for other sessions."""
    made = make()
    if not is_asynchronous(type(made)):
        raise ConfigurationError(f"async_bind must make AsyncSessions, and makes a {type(made).__name__}: {_REMEDY}")
    found: sa.Engine | sa.Connection = made.sync_session.get_bind(entity)
    check_translation(found, entity)
    return found.engine


def _isolation_of(engine: sa.Engine) -> str:
    """Return the isolation level of a new connection. Pooled connections may belong to a running event loop."""

    def ask() -> str:
        pool = engine.pool.recreate()
        try:
            with closing(sa.Connection(engine, pool.connect())) as connection:
                return checked_isolation(connection)
        finally:
            pool.dispose()

    with ThreadPoolExecutor(1) as thread:  # the caller's thread may be running an event loop
        return thread.submit(asyncio.run, greenlet_spawn(ask)).result()


def _engine_like(app: sa.Engine, isolation: str) -> AsyncEngine:
    from sqlalchemy.ext.asyncio import create_async_engine

    pool = app.pool
    overflow: int = getattr(pool, "_max_overflow", -1)
    sizes = {"pool_size": _MOST, "max_overflow": 0}
    if isinstance(pool, QueuePool) and overflow >= 0:
        sizes = {"pool_size": pool.size(), "max_overflow": overflow}
    address = app.url.set(drivername="postgresql+psycopg")
    level: Any = isolation
    return create_async_engine(
        address,
        isolation_level=level,
        connect_args=connect_args(app),
        execution_options={**app.get_execution_options()},
        pool_pre_ping=getattr(pool, "_pre_ping", False),
        pool_recycle=getattr(pool, "_recycle", -1),
        **sizes,
    )
