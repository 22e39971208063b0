"""A parent's database connection, made without the application or SQLAlchemy. Children send the server's address."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from sqla_jobs.database.preparing import is_useless_after, prepared
from sqla_jobs.supervisor.messages import Address, Statements

_DEFAULT = "SELECT current_setting('default_transaction_isolation')"
_LIMIT = "SELECT set_config('idle_in_transaction_session_timeout', %s, true)"


class DatabaseInfo:
    """Data about the database, sent by children: the latest address, and the first child's statements."""

    def __init__(self) -> None:
        self._address: Address | None = None
        self._statements: Statements | None = None

    def learn(self, message: Address | Statements) -> None:
        if isinstance(message, Address):
            self._address = message
        else:
            self._statements = self._statements or message

    @property
    def address(self) -> Address:
        assert self._address is not None, "a child sends it before it registers"
        return self._address

    @property
    def statements(self) -> Statements:
        assert self._statements is not None, "a child sends them before its address"
        return self._statements


class Database:
    """A connection for one thread, to the latest address. The connection is replaced if it breaks.

    Except in `transaction()`, each statement commits separately, under READ COMMITTED.
    """

    def __init__(self, info: DatabaseInfo, *, patience: float) -> None:
        self._info = info
        self._patience = patience
        self._connection: psycopg.Connection[Any] | None = None
        self._is_strict = False
        """True if the database's default isolation is not READ COMMITTED."""

    @contextmanager
    def begin(self) -> Generator[psycopg.Connection[Any]]:
        """Return the connection. Each statement on the connection commits separately."""
        with self._usable() as connection, self._transaction(connection) if self._is_strict else nullcontext():
            yield connection

    @contextmanager
    def transaction(self) -> Generator[psycopg.Connection[Any]]:
        """Return the connection in a transaction. `psycopg.Rollback` ends the block and rolls back."""
        with self._usable() as connection, self._transaction(connection):
            yield connection

    @contextmanager
    def for_itself(self) -> Generator[psycopg.Connection[Any]]:
        """Return a new connection that is not shared."""
        connection = self._made()
        try:
            yield connection
        finally:
            connection.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            connection = self._made()
            try:
                self._is_strict = connection.execute(_DEFAULT).fetchone() != ("read committed",)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _made(self) -> psycopg.Connection[Any]:
        connection = prepared(self._info.address.connect, patience=self._patience)
        connection.autocommit = True
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        return connection

    @contextmanager
    def _usable(self) -> Generator[psycopg.Connection[Any]]:
        connection = self._open()
        try:
            yield connection
        except BaseException as error:
            if connection.info.transaction_status != TransactionStatus.IDLE or is_useless_after(error):
                self.close()
            raise

    @contextmanager
    def _transaction(self, connection: psycopg.Connection[Any]) -> Generator[None]:
        with connection.transaction():
            if self._is_strict:  # limits how long locks are held if this process vanishes before its COMMIT
                connection.execute(_LIMIT, [f"{1000 * self._patience:.0f}"])
            yield
