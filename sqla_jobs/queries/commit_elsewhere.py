"""The end of a task's transaction where the driver is not psycopg: a statement more, through SQLAlchemy."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from sqlalchemy import Connection, event


class CommitElsewhere:
    """Inside, the connection's COMMIT also stores the end, waiting for the row; or raises `LeaseLost`.

    Other databases of the session are committed once the lease has been found to stand, and before the end is.
    """

    def __init__(self, connection: Connection, store: Callable[[], None]) -> None:
        """`store` stores the end in the transaction, which goes on."""
        self._connection = connection
        self._store = store
        self._is_stored = False
        self._others: list[Connection] = []

    def __enter__(self) -> CommitElsewhere:
        event.listen(self._connection, "commit", self._before_own)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        event.remove(self._connection, "commit", self._before_own)

    def watch(self, connection: Connection) -> None:
        """Another connection of the session, unless it is this one."""
        if connection is not self._connection:
            self._others.append(connection)
            event.listen(connection, "commit", self._before_other)

    def _before_other(self, other: Connection) -> None:
        if not self._is_stored:
            self._store()
            self._is_stored = True

    def _before_own(self, own: Connection) -> None:
        self._before_other(own)
        for other in self._others:
            if other.in_transaction():
                other.dialect.do_commit(other.connection)
