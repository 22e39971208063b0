"""The base class of statements. Each subclass holds a statement's SQL, its parameters and its call.

Calls that need no SQLAlchemy are in `calls`.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from sqla_jobs.calls.statements import Rendered
from sqla_jobs.queries.expressions import Tables, rendered

SqlConnection = Connection | Session


class Statement:
    """A statement that is built once, at its first call.

    A session executes the statement on its connection to the jobs' database.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables

    def sql(self) -> Any:
        """Return the statement, built from `tables`."""
        raise NotImplementedError

    @cached_property
    def _built(self) -> Any:
        return self.sql()

    @cached_property
    def rendered(self) -> Rendered:
        """The statement in psycopg's format, for callers without SQLAlchemy."""
        return rendered(self._built)

    def _rows(self, connection: SqlConnection, values: dict[str, Any]) -> list[Any]:
        return list(self._run(connection, values).all())

    def _run(self, connection: SqlConnection, values: dict[str, Any]) -> Any:
        return self._connection(connection).execute(self._built, values)

    def _connection(self, connection: SqlConnection) -> Connection:
        return self.tables.connection(connection) if isinstance(connection, Session) else connection


class RenderedStatement(Statement):
    """A statement that is compiled once, which halves SQLAlchemy's work in each call.

    The results are the values that psycopg returns.
    """

    def _run(self, connection: SqlConnection, values: dict[str, Any]) -> Any:
        own = self._connection(connection)
        if own.dialect.driver != "psycopg":  # a test's session may use asyncpg
            return super()._run(own, values)
        return own.exec_driver_sql(*self.filled(values))

    def run(self, connection: SqlConnection) -> None:
        """Execute the statement, without parameters."""
        self._run(connection, {})

    def filled(self, values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the statement in psycopg's format, with all parameters."""
        text, fixed = self.rendered
        return text, {**fixed, **values}
