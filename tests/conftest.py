"""A server for the session, an empty database for each test, and no process left behind."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, make_url

from sqla_jobs.postgres import local_postgres
from tests.helpers import wait_until


@pytest.fixture(scope="session", autouse=True)
def no_process_left() -> Iterator[None]:
    """At the end all that the tests started is gone: children, and orphans by their mark."""
    mark = f"SQLA_JOBS_TESTS={uuid.uuid4()}"
    name, value = mark.split("=")
    os.environ[name] = value
    yield
    with suppress(AssertionError):
        wait_until(lambda: not processes_of_ours(mark))
    assert processes_of_ours(mark) == []


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The URL of a PostgreSQL server: DATABASE_URL where it is set, or one of our own."""
    if given := os.environ.get("DATABASE_URL"):
        yield re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", given)
    else:
        with local_postgres() as url:
            yield url


@contextmanager
def new_database(server_url: str) -> Generator[str]:
    """The URL of an empty database, dropped afterwards."""
    server = make_url(server_url)
    name = f"sqla_jobs_test_{uuid.uuid4().hex}"
    dsn = server.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())
        yield server.set(database=name).render_as_string(hide_password=False)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def database_url(server_url: str) -> Iterator[str]:
    """The URL of a new, empty database."""
    with new_database(server_url) as url:
        yield url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on a new, empty database."""
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def module_engine(server_url: str) -> Iterator[Engine]:
    """An engine on a database that the tests of one module share: they roll back what they do."""
    with new_database(server_url) as url:
        engine = create_engine(url)
        yield engine
        engine.dispose()


def processes_of_ours(mark: str) -> list[str]:
    """Our children, and all that carry the mark in their environment. (Empty where no /proc is.)"""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile, or belongs to somebody else
            parent = process.joinpath("stat").read_text(errors="replace").rpartition(")")[2].split()[1]
            command = process.joinpath("cmdline").read_text(errors="replace").replace("\0", " ")
            is_child = parent == str(os.getpid()) and "multiprocessing.resource_tracker" not in command
            if is_child or mark in process.joinpath("environ").read_text(errors="replace"):
                found.append(f"{process.name}: {command}")
    return found
