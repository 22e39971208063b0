"""The pytest plugin: a server and databases for tests. It imports the rest of the library only for its fixtures.

`pytest -p no:sqla_jobs` disables it. `docs/testing.md` describes the fixtures.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Listener
from threading import Thread
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
def sqla_jobs_postgres(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a PostgreSQL server: `DATABASE_URL` if it is set, else a new server.

    The server starts with the first test that needs it, once for all workers of pytest-xdist, and stops with the test
    run.
    """
    shared = getattr(request.config, "workerinput", {}).get(_SHARED)
    if given := os.environ.get("DATABASE_URL"):
        yield _server_of(given)
    elif shared is not None:
        yield _ask(*shared)
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

    from sqla_jobs.testing.databases import Databases

    with ExitStack() as entered:
        try:
            databases = entered.enter_context(Databases(sqla_jobs_postgres))
        except psycopg.OperationalError as error:
            if "DATABASE_URL" not in os.environ:
                raise
            pytest.fail(f"The tests cannot connect to DATABASE_URL; {_UNSET_IT}.\n{error}", pytrace=False)
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


_UNSET_IT = "correct it, or unset it, and the tests start their own server"


def _server_of(url: str) -> str:
    """Check `DATABASE_URL`, and return it for psycopg. No message shows its password."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    given = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)
    try:
        backend = make_url(given).get_backend_name()
    except ArgumentError:
        pytest.fail(f"DATABASE_URL is not the URL of a database; {_UNSET_IT}.", pytrace=False)
    if backend != "postgresql":
        pytest.fail(
            f"DATABASE_URL names a {backend} database, and the fixtures need PostgreSQL; {_UNSET_IT}.",
            pytrace=False,
        )
    return given


_SHARED = "sqla_jobs_shared_server"


class _SharedServer:
    """Starts a server when the first pytest-xdist worker asks for its URL. Lives in the controlling process."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(16)
        self._listener = Listener(backlog=64, authkey=self._key)
        self._running = ExitStack()
        self._thread = Thread(target=self._answer, name="pytest-sqla_jobs", daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, bytes]:
        """The arguments for `_ask`."""
        return str(self._listener.address), self._key

    def close(self) -> None:
        """Stop the server."""
        with Client(self._listener.address, authkey=self._key) as connection:
            connection.send(False)
        self._thread.join()
        self._listener.close()
        self._running.close()

    def _answer(self) -> None:
        answer: Any = None
        while True:
            try:
                with self._listener.accept() as connection:
                    if not connection.recv():
                        return
                    answer = answer or self._start()
                    connection.send(answer)
            except (AuthenticationError, OSError, EOFError):  # the worker is gone
                continue

    def _start(self) -> str | Exception:
        from sqla_jobs.errors import ConfigurationError
        from sqla_jobs.postgres import local_postgres, memory

        try:
            return self._running.enter_context(local_postgres(temporary=memory()))
        except (ConfigurationError, OSError) as error:
            return error


def _ask(address: str, key: bytes) -> str:
    with Client(address, authkey=key) as connection:
        connection.send(True)
        answer: str | Exception = connection.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer


_SHARED_SERVER = pytest.StashKey[_SharedServer]()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give a pytest-xdist worker the address at which to ask for the server's URL."""
    stash: pytest.Stash = node.config.stash
    if _SHARED_SERVER not in stash:
        stash[_SHARED_SERVER] = _SharedServer()
    node.workerinput[_SHARED] = stash[_SHARED_SERVER].address


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the workers' shared server."""
    if (shared := config.stash.get(_SHARED_SERVER, None)) is not None:
        shared.close()
