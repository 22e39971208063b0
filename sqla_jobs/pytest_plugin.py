"""The pytest plugin: a server and databases for tests. It imports the rest of the library only for its fixtures.

`pytest -p no:sqla_jobs` disables it. `docs/testing.md` describes the fixtures.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flask import Flask
    from sqlalchemy import Connection, Engine, MetaData
    from sqlalchemy.orm import Session

    from sqla_jobs.testing.databases import Databases

__all__ = [
    "sqla_jobs_connection",
    "sqla_jobs_database",
    "sqla_jobs_databases",
    "sqla_jobs_engine",
    "sqla_jobs_flask",
    "sqla_jobs_metadata",
    "sqla_jobs_postgres",
    "sqla_jobs_session",
    "sqla_jobs_session_class",
]


@pytest.fixture(scope="session")
def sqla_jobs_postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server: `DATABASE_URL` if it is set, else a new server.

    The server starts with the first test that needs it, and stops with the test run. Each worker of pytest-xdist has a
    server of its own.
    """
    if given := os.environ.get("DATABASE_URL"):
        yield re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", given)
    else:
        from sqla_jobs.postgres import local_postgres, memory

        with local_postgres(temporary=memory()) as url:
            yield url


@pytest.fixture(scope="session")
def sqla_jobs_metadata() -> MetaData:
    """The metadata with the tables of the application and its jobs. Override this fixture in your conftest.py."""
    pytest.fail(
        "The fixtures of sqla_jobs need your tables. Add to conftest.py:\n\n"
        '    @pytest.fixture(scope="session")\n'
        "    def sqla_jobs_metadata():\n"
        "        return Base.metadata\n",
        pytrace=False,
    )


@pytest.fixture(scope="session")
def sqla_jobs_databases(sqla_jobs_postgres: str) -> Iterator[Databases]:
    """The `Databases` that creates the databases of the other fixtures."""
    import psycopg
    from sqlalchemy.exc import ArgumentError

    from sqla_jobs.testing.databases import Databases

    with ExitStack() as entered:
        try:
            databases = entered.enter_context(Databases(sqla_jobs_postgres))
        except (psycopg.OperationalError, ArgumentError) as error:
            pytest.fail(
                f"The tests cannot connect to their server (that of DATABASE_URL if it is set): {error}", pytrace=False
            )
        yield databases


@pytest.fixture
def sqla_jobs_database(sqla_jobs_databases: Databases, sqla_jobs_metadata: MetaData) -> Iterator[str]:
    """The URL of a database for this test alone, with all tables: a copy of a template, dropped afterwards."""
    with sqla_jobs_databases.new(sqla_jobs_metadata) as url:
        yield url


@pytest.fixture(scope="session")
def sqla_jobs_engine(sqla_jobs_databases: Databases, sqla_jobs_metadata: MetaData) -> Iterator[Engine]:
    """An engine on a database with all tables, for tests that commit nothing: each xdist worker has its own."""
    from sqlalchemy import create_engine

    with sqla_jobs_databases.new(sqla_jobs_metadata) as url:
        engine = create_engine(url)
        yield engine
        engine.dispose()


@pytest.fixture
def sqla_jobs_connection(sqla_jobs_engine: Engine) -> Iterator[Connection]:
    """A connection in a transaction that is rolled back after the test."""
    with sqla_jobs_engine.connect() as connection, connection.begin() as transaction:
        yield connection
        transaction.rollback()


@pytest.fixture(scope="session")
def sqla_jobs_session_class() -> type[Session]:
    """The class of `sqla_jobs_session`. Override it if tasks take another class, such as SQLModel's `Session`."""
    from sqlalchemy.orm import Session

    return Session


@pytest.fixture
def sqla_jobs_session(sqla_jobs_connection: Connection, sqla_jobs_session_class: type[Session]) -> Iterator[Session]:
    """A session that is rolled back after the test: its commits are savepoints."""
    with sqla_jobs_session_class(sqla_jobs_connection, join_transaction_mode="create_savepoint") as session:
        yield session


@pytest.fixture
def sqla_jobs_flask(sqla_jobs_connection: Connection) -> Callable[[Flask], Flask]:
    """A function that takes a Flask application, makes its `db.session` use the test's connection, and returns it.

    The session's commits are savepoints, which are rolled back after the test.
    """

    def in_test(app: Flask) -> Flask:
        db: Any = app.extensions.get("sqlalchemy")
        if db is None:
            pytest.fail(f"{app!r} has no db.session; bind its own session to sqla_jobs_connection.", pytrace=False)
        is_lite = hasattr(type(db), "sessionmaker")
        with app.app_context():
            db.engines["default" if is_lite else None] = sqla_jobs_connection
            options = {"bind": sqla_jobs_connection} if is_lite else {}
            (db.sessionmaker if is_lite else db.session).configure(join_transaction_mode="create_savepoint", **options)
        return app

    return in_test
