"""What a `Jobs` connects with: the application's sessions for its tasks, an engine of its own for the rest."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from typing import Any, cast

from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sqla_jobs.errors import ConfigurationError

SessionFactory = Callable[[], Session]
Bind = Engine | SessionFactory

_REMEDY = "give a create_engine('postgresql+psycopg://…') or a sessionmaker of one"


class Binding:
    """One application's database. Raises `ConfigurationError` for what jobs cannot run on."""

    def __init__(self, bind: Bind, entity: type[Any]) -> None:
        self.session_factory = _session_factory(bind)
        self._bind = bind
        self._entity = entity

    @property
    def engine(self) -> Engine:
        """The engine behind the application's sessions."""
        if isinstance(self._bind, Engine):
            return _checked(self._bind)
        with closing(self.session_factory()) as session:
            if isinstance(session, AsyncSession):
                raise ConfigurationError(f"bind={self._bind!r} makes AsyncSessions: tasks run in threads, so {_REMEDY}")
            found = session.get_bind(self._entity)
        return _checked(found.engine if isinstance(found, Connection) else found)

    @contextmanager
    def transaction(self) -> Generator[Session]:
        """A session of the application's, committed at the end, rolled back after an error."""
        with self.session_factory() as session:
            yield session
            session.commit()

    def own_engine(self) -> Engine:
        """A new engine that connects as the application's does, whatever that one's pool and settings are.

        Statements commit one by one under READ COMMITTED, nothing is set in the server's session, and
        nothing is prepared there: a generic plan made on an empty table would scan for ever.
        """
        app = self.engine
        engine = _own(app, "AUTOCOMMIT")
        with engine.connect() as connection:
            default = connection.scalar(select(func.current_setting("default_transaction_isolation")))
        if default != "read committed":
            engine.dispose()
            engine = _own(app, "READ COMMITTED")
        return engine


def _own(app: Engine, isolation: Any) -> Engine:
    source = app.pool.recreate()

    def connect() -> Any:
        borrowed = source.connect()
        borrowed.detach()
        return borrowed.dbapi_connection

    engine = create_engine(
        app.url,
        creator=connect,
        pool_size=4,
        max_overflow=0,
        pool_reset_on_return=None,
        isolation_level=isolation,
    )

    @event.listens_for(engine, "connect")
    def never_prepare(dbapi_connection: Any, _: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        dbapi_connection.prepare_threshold = None

    return engine


def _session_factory(bind: Any) -> SessionFactory:
    if isinstance(bind, Engine):
        return sessionmaker(bind)
    if isinstance(bind, scoped_session):
        return cast("SessionFactory", bind.session_factory)  # each run has a session of its own
    if isinstance(bind, AsyncEngine | async_sessionmaker):
        raise ConfigurationError(f"bind={bind!r} is asynchronous: tasks run in threads, so {_REMEDY}")
    if callable(bind):
        return cast("SessionFactory", bind)
    raise ConfigurationError(f"bind={bind!r} is neither an Engine nor a session factory: {_REMEDY}")


def _checked(engine: Engine) -> Engine:
    if (engine.dialect.name, engine.dialect.driver) != ("postgresql", "psycopg"):
        raise ConfigurationError(
            f"the engine is {engine.dialect.name}+{engine.dialect.driver}; workers need PostgreSQL through psycopg 3: "
            f"{_REMEDY}"
        )
    return engine
