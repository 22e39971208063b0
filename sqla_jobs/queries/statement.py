"""The base class of statements. Each subclass holds a statement's SQL, its parameters and its call."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import psycopg
import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.database.driver import driver
from sqla_jobs.database.engines import fetched
from sqla_jobs.queries.expressions import Tables, numbered
from sqla_jobs.queries.sql_text import NO_PIECES, Pieces, bound

SqlConnection = sa.Connection | Session


class Statement:
    """A statement that is built once, at its first call.

    It is SQL text (`sql_text`), unless a subclass builds it. A session executes the statement on its connection to the
    jobs' database.
    """

    text: ClassVar[str]
    """The SQL."""
    pieces: Pieces = NO_PIECES
    """The pieces that only this statement uses."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables

    def sql(self) -> Any:
        """Return the statement."""
        return bound(self.text, self.tables, self.pieces)

    @cached_property
    def _built(self) -> Any:
        return self.sql()

    def _rows(self, connection: SqlConnection, values: dict[str, Any]) -> list[Any]:
        return list(self._run(connection, values).all())

    def _run(self, connection: SqlConnection, values: dict[str, Any]) -> Any:
        return self._connection(connection).execute(self._built, values)

    def _connection(self, connection: SqlConnection) -> sa.Connection:
        return self.tables.connection(connection) if isinstance(connection, Session) else connection


class RenderedStatement(Statement):
    """A statement that is compiled once. On one of the library's own connections, it is sent below SQLAlchemy.

    This saves most of the client's work in a call: SQLAlchemy would describe the columns of the result, and psycopg
    would search a text of more than 4,096 characters for parameters, anew each time.
    """

    def _rows(self, connection: SqlConnection, values: dict[str, Any]) -> list[Any]:
        if isinstance(connection, sa.Connection) and isinstance(driver(connection), psycopg.Connection):
            return fetched(connection, *self.sent(values))
        return super()._rows(connection, values)  # a session, or a test's connection of another kind

    def run(self, connection: SqlConnection) -> None:
        """Execute the statement, without parameters."""
        self._run(connection, {})

    @cached_property
    def numbered(self) -> tuple[str, list[str], dict[str, Any]]:
        """The statement in PostgreSQL's format, the names of its parameters in order, and those that do not change."""
        return numbered(self._built)

    def sent(self, values: dict[str, Any]) -> tuple[str, list[Any]]:
        """Return the statement in PostgreSQL's format, with all parameters."""
        text, names, fixed = self.numbered
        given = fixed | values
        return text, [given[name] for name in names]
