"""The sessions of coroutine tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool
from sqlalchemy.util import greenlet_spawn

from sqla_jobs.database.engines import by_psycopg
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
"""Where the `info` of a session has the `AsyncSession` around it, until a task gets it."""


class AsyncSessions:
    """New sessions of an asynchronous engine: that of the application, or one made of the address of its own.

    An engine that is made here has a pool as large as the other one's, if that is limited.
    """

    def __init__(self, bind: AsyncBind | None, app: Engine, isolation: str, entity: type[Any]) -> None:
        from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

        chosen = _engine_like(app, isolation) if bind is None else bind
        self._entity = entity
        self._make: Callable[[], Any]
        if isinstance(chosen, AsyncEngine):
            self._make = async_sessionmaker(chosen)
        elif callable(chosen):
            self._make = chosen
        else:
            raise ConfigurationError(
                f"async_bind must be an AsyncEngine or make AsyncSessions, got {bind!r}: {_REMEDY}"
            )

    def begin(self) -> Session:
        """The session below a new `AsyncSession`, for use in a greenlet of SQLAlchemy's."""
        made = self._make()
        session: Session = made.sync_session
        session.info[_ASYNC] = made
        return session

    async def close(self) -> None:
        """Close the connections of the engine, which belong to the loop that ends."""
        engine: Engine = self._make().sync_session.get_bind(self._entity)
        await greenlet_spawn(engine.engine.dispose)


def around(session: Session) -> Any:
    """The `AsyncSession` around a session that `AsyncSessions` gave; once."""
    return session.info.pop(_ASYNC)


def synchronous_engine(bind: AsyncBind, entity: type[Any]) -> Engine:
    """A synchronous engine of the same database."""
    from sqlalchemy.ext.asyncio import AsyncEngine

    if isinstance(bind, AsyncEngine):
        return by_psycopg(bind.sync_engine)
    found = bind().sync_session.get_bind(entity)
    return by_psycopg(found.engine if isinstance(found, Connection) else found)


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
