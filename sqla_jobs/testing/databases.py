"""Databases for tests. Each database is a copy of a template, since copying is faster than creating tables."""

from __future__ import annotations

import uuid
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Self

import psycopg
import sqlalchemy as sa
from sqlalchemy.schema import CreateSchema

# FILE_COPY takes half the time of WAL_LOG, but needs two checkpoints, so it pays off only without fsync.
# PostgreSQL 14 always copies files and does not know the option.
_HOW = """SELECT CASE WHEN current_setting('fsync') = 'off' AND current_setting('server_version_num')::int >= 150000
    THEN ' STRATEGY FILE_COPY' ELSE '' END"""


class Databases:
    """Creates and drops databases on one server, over one connection."""

    def __init__(self, server_url: str) -> None:
        self._server = sa.make_url(server_url)
        self._templates: dict[sa.MetaData, str] = {}
        self._connection = self._connect()
        self._how: str = self._connection.execute(_HOW).fetchall()[0][0]

    def __enter__(self) -> Self:
        return self

    def _connect(self) -> psycopg.Connection[Any]:
        dsn = self._server.set(drivername="postgresql").render_as_string(hide_password=False)
        return psycopg.connect(dsn, autocommit=True)

    def __exit__(self, *_: object) -> None:
        with self._connection:
            for name in self._templates.values():
                self._drop(name)

    @contextmanager
    def new(self, metadata: sa.MetaData | None = None) -> Generator[str]:
        """Yield the URL of a new database with the tables of `metadata`, or without tables. Drop it afterwards."""
        name = self._create("template0" if metadata is None else self._template(metadata))
        try:
            yield self._url(name)
        finally:
            self._drop(name)

    def _template(self, metadata: sa.MetaData) -> str:
        """Return the name of a template with these tables. The first call for a `metadata` creates the template."""
        if metadata not in self._templates:
            self._templates[metadata] = name = self._create("template0")
            engine = sa.create_engine(self._url(name))
            with engine.begin() as connection:
                for schema in {table.schema for table in metadata.tables.values()} - {None}:
                    connection.execute(CreateSchema(str(schema), if_not_exists=True))
                metadata.create_all(connection)
            engine.dispose()  # a database with connections cannot be copied
        return self._templates[metadata]

    def _create(self, template: str) -> str:
        name = f"sqla_jobs_test_{uuid.uuid4().hex}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template}{self._how}")
        return name

    def _drop(self, name: str) -> None:
        self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        try:
            self._connection.execute(statement.encode())
        except psycopg.OperationalError:
            if not self._connection.broken:
                raise
            self._connection = self._connect()  # a test may have restarted the server
            self._connection.execute(statement.encode())

    def _url(self, name: str) -> str:
        return self._server.set(database=name).render_as_string(hide_password=False)


@contextmanager
def new_database(server_url: str) -> Generator[str]:
    """Yield the URL of a new, empty database. Drop it afterwards."""
    with Databases(server_url) as databases, databases.new() as url:
        yield url
