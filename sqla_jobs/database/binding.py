"""The application's engine and sessions, to which a `Jobs` is bound."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sqla_jobs.database.async_sessions import AsyncBind, AsyncSessions, synchronous_engine
from sqla_jobs.database.engines import REMEDY, check_engine, check_translation, checked_isolation, is_asynchronous
from sqla_jobs.database.session_classes import check_class, making
from sqla_jobs.database.shard_name import SHARD_NAME
from sqla_jobs.database.sharding import is_sharded
from sqla_jobs.errors import ConfigurationError

SessionFactory = Callable[[], Session]
SyncBind = sa.Engine | SessionFactory
Bind = SyncBind | AsyncBind
Context = Callable[[Any], AbstractContextManager[Any]]
"""Takes a run's `RunContext`, and returns the context manager around the run. Outside runs, it takes `None`."""


class Binding:
    """One application's database. Raises `ConfigurationError` if jobs cannot run on it.

    Each run happens inside its own context, such as Flask's application context. Other code that opens a session or
    needs the engine does so inside a context, too. No context is opened before it is needed.
    """

    def __init__(
        self,
        bind: SyncBind,
        entity: type[Any],
        *,
        context: Context | None = None,
        run_session: SessionFactory | None = None,
        async_bind: AsyncBind | None = None,
    ) -> None:
        self.session_factory: SessionFactory = _session_factory(bind)
        self.context: Context = context or nullcontext
        self.run_session: SessionFactory = run_session or self.session_factory
        """Returns a run's session. It is called inside the run's context.

        The session is a new one, or the one in which the application writes.
        """
        self._bind = bind
        self._entity = entity
        self._async_bind = async_bind
        engine = bind.kw["bind"] if isinstance(bind, sessionmaker) else bind
        if isinstance(engine, sa.Engine):
            check_translation(engine, entity)

    def async_sessions(self, isolation: str) -> AsyncSessions:
        """Return the sessions for coroutine tasks.

        `isolation` applies if the application has no asynchronous engine.
        """
        return AsyncSessions(self._async_bind, self.engine, isolation, self._entity)

    def sessions_of(self, kind: type[Session], task: str) -> SessionFactory:
        """Return a factory for sessions of the class `kind`, for the runs of `task`.

        Raises `ConfigurationError` if the application's sessions are of another class.
        """
        if kind is Session:
            return self.run_session
        if self.run_session is not self.session_factory:  # the application's helpers write in this session, too
            with self.session() as session:
                check_class(session, kind, task)
            return self.run_session
        make = making(self.session_factory, kind, task)
        with self.context(None), closing(make()) as session:
            check_class(session, kind, task)
        return make

    @property
    def engine(self) -> sa.Engine:
        """The engine behind the application's sessions."""
        if isinstance(self._bind, sa.Engine):
            return check_engine(self._bind)
        with self.session() as session:
            if is_sharded(session):
                raise ConfigurationError(
                    "bind gives a ShardedSession, and a run works in one database: bind the databases by name, as "
                    "jobs.bind({'eu': engine, 'us': engine})"
                )
            found = session.get_bind(self._entity)
        check_translation(found, self._entity)
        return check_engine(found.engine)

    def check_isolation(self) -> str:
        """Return the isolation level of the application's sessions. Raises `ConfigurationError` for autocommit."""
        with self.session() as session:
            connection = session.connection(bind_arguments={"mapper": self._entity})
            check_translation(connection, self._entity)
            return checked_isolation(connection)

    @contextmanager
    def session(self) -> Generator[Session]:
        """Open a new application session, and close it at the end. Uncommitted changes are rolled back."""
        with self.context(None), closing(self.session_factory()) as session:
            yield session

    @contextmanager
    def transaction(self) -> Generator[Session]:
        """Open a session that commits at the end, or rolls back after an error."""
        with self.session() as session:
            yield session
            session.commit()


def both_binds(bind: Bind, async_bind: AsyncBind | None, entity: type[Any]) -> tuple[SyncBind, AsyncBind | None]:
    """Return a synchronous and an asynchronous bind. The synchronous one is created if `bind` is asynchronous."""
    if not is_asynchronous(type(bind)):
        return cast("SyncBind", bind), async_bind
    given = cast("AsyncBind", bind)
    return synchronous_engine(given, entity), async_bind or given


def checked_shards(binds: Mapping[str, Bind]) -> dict[str, Bind]:
    """Return databases by name. Raises `ConfigurationError` if there is none, or if a name is invalid."""
    if not binds:
        raise ConfigurationError("bind is empty: give at least one database by name, such as {'eu': engine}")
    for name in binds:
        if not (isinstance(name, str) and SHARD_NAME.fullmatch(name)):
            raise ConfigurationError(
                f"the database's name {name!r:.60} must be 1 to 40 letters, digits, -, _ and ., such as 'eu'"
            )
    return dict(binds)


def _session_factory(bind: Any) -> SessionFactory:
    if isinstance(bind, sa.Engine):
        return sessionmaker(bind)
    if isinstance(bind, scoped_session):
        return cast("SessionFactory", bind.session_factory)  # each run has its own session
    if callable(bind):
        return cast("SessionFactory", bind)
    if isinstance(bind, str | sa.URL):  # the URL is not shown, because it may contain a password
        raise ConfigurationError(f"bind must be an engine or a session factory, got a URL: {REMEDY}")
    raise ConfigurationError(f"bind must be an engine or a session factory, got {bind!r}: {REMEDY}")
