"""Engines with a `schema_translate_map`, which changes what sessions say and not what workers say."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
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


def of_factory(jobs: Jobs[Any], engine: Engine) -> None:
    jobs.bind(lambda: Session(engine.execution_options(**OF_TENANT)))


def of_connection(jobs: Jobs[Any], engine: Engine) -> None:
    def make() -> Session:
        session = Session(engine)
        session.connection(execution_options=OF_TENANT)
        return session

    jobs.bind(make)


def of_coroutines(jobs: Jobs[Any], engine: Engine) -> None:
    @jobs.task
    async def read(session: AsyncSession, n: int) -> None: ...

    jobs.bind(engine, async_bind=create_async_engine(engine.url).execution_options(**OF_TENANT))


@pytest.mark.parametrize("bind", [of_factory, of_connection, of_coroutines])
def test_what_only_sessions_show_is_refused_where_a_worker_starts(
    database: Engine, bind: Callable[[Jobs[Any], Engine], None]
) -> None:
    jobs = application()
    bind(jobs, database)
    with pytest.raises(ConfigurationError, match="'tenant'"):
        jobs.worker().drain()


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


def test_jobs_of_a_schema_that_the_map_does_not_name_are_where_all_tenants_look(database: Engine) -> None:
    jobs = application(schema="public")
    jobs.bind(database.execution_options(**OF_TENANT))
    with Session(database.execution_options(schema_translate_map={None: "another"})) as session:
        jobs.tasks["note"].enqueue(session, n=1)
        session.commit()
    assert jobs.worker().drain() == 1
    with database.connect() as connection:
        assert connection.scalar(text("SELECT state FROM public.sqla_jobs")) == "succeeded"
