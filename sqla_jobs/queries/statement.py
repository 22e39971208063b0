"""One statement: its SQL, its parameters and its call, side by side."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from sqla_jobs.queries.expressions import Tables, rendered


class Statement:
    """Built once, at its first call. A session executes it on its connection to the database of the jobs."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables

    def sql(self) -> Any:
        """The statement, over the tables."""
        raise NotImplementedError

    @cached_property
    def _built(self) -> Any:
        return self.sql()

    def _run(self, connection: Connection | Session, values: dict[str, Any]) -> Any:
        return self._connection(connection).execute(self._built, values)

    def _connection(self, connection: Connection | Session) -> Connection:
        return self.tables.connection(connection) if isinstance(connection, Session) else connection


class RenderedStatement(Statement):
    """Rendered once too, which spares half of what SQLAlchemy does for each call. Results are as psycopg reads them."""

    @cached_property
    def _rendered(self) -> tuple[str, dict[str, Any]]:
        return rendered(self._built)

    def _run(self, connection: Connection | Session, values: dict[str, Any]) -> Any:
        own = self._connection(connection)
        if own.dialect.driver != "psycopg":  # a test's session may be one of asyncpg's
            return super()._run(own, values)
        text, fixed = self._rendered
        return own.exec_driver_sql(text, {**fixed, **values})
