"""Engines with a `schema_translate_map`, which changes what sessions say and not what workers say."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import ConfigurationError, Jobs

OF_TENANT: dict[str, Any] = {"schema_translate_map": {None: "tenant"}}


def application(schema: str | None = None) -> Jobs[Any]:
    class Base(DeclarativeBase):
        pass

    jobs = Jobs(Base, schema=schema)

    @jobs.task
    def note(n: int) -> None: ...

    return jobs


def translating(engine: Engine, kind: str) -> Any:
    """What an application binds."""
    if kind == "engine":
        return engine.execution_options(**OF_TENANT)
    return async_sessionmaker(create_async_engine(engine.url).execution_options(**OF_TENANT))


@pytest.mark.parametrize("kind", ["engine", "asynchronous sessions"])
def test_a_bind_that_puts_the_jobs_elsewhere_is_refused(engine: Engine, kind: str) -> None:
    jobs = application()
    with pytest.raises(ConfigurationError, match="'tenant'"):
        jobs.bind(translating(engine, kind))
    assert not jobs._is_bound


def by_engine(connection: Connection) -> Session:
    return Session(connection.engine.execution_options(**OF_TENANT))


def by_connection(connection: Connection) -> Session:
    return Session(connection.execution_options(**OF_TENANT))


def by_option(connection: Connection) -> Session:
    session = Session(connection.engine)
    session.connection(execution_options=OF_TENANT)
    return session


@pytest.mark.parametrize("open_session", [by_engine, by_connection, by_option])
def test_what_a_session_would_put_elsewhere_is_not_committed(
    database: Engine, open_session: Callable[[Connection], Session]
) -> None:
    jobs = application()
    note = jobs.tasks["note"]
    with database.execution_options(**OF_TENANT).begin() as connection:
        connection.execute(text("CREATE SCHEMA tenant"))
        jobs.Job.metadata.create_all(connection)
    jobs.bind(database)

    def enqueue(session: Session) -> None:
        note.enqueue(session, n=1)
        session.commit()

    def enqueue_many(session: Session) -> None:
        note.enqueue_many(session, [{"n": 1}])

    def enqueue_unique(session: Session) -> None:
        note.options(unique_key="one").enqueue(session, n=1)

    for put in (enqueue, enqueue_many, enqueue_unique):
        with database.connect() as connection, open_session(connection) as session:
            with pytest.raises(ConfigurationError, match="'tenant'"):
                put(session)
            with suppress(PendingRollbackError):
                session.commit()
    with database.begin() as connection:
        assert connection.scalar(text("SELECT count(*) FROM tenant.sqla_jobs")) == 0
        connection.execute(text("DROP SCHEMA tenant CASCADE"))
