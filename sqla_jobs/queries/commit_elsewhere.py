"""The end of a task's transaction where the driver is not psycopg: a statement more, through SQLAlchemy."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from sqlalchemy import Connection, event

from sqla_jobs.queries.ending import Ending, rolled_back_by_an_error


@contextmanager
def storing_elsewhere(connection: Connection, store: Callable[[], None]) -> Generator[Ending]:
    """Inside, the connection's COMMIT also stores the end, waiting for the row; or raises `LeaseLost`.

    `store` stores the end in the transaction, which goes on.
    """
    ending = _EndingElsewhere(connection, store)
    event.listen(connection, "commit", ending.before_own)
    try:
        yield ending
    finally:
        event.remove(connection, "commit", ending.before_own)
    ending.check()


class _EndingElsewhere(Ending):
    def __init__(self, connection: Connection, store: Callable[[], None]) -> None:
        super().__init__(connection)
        self._store_by = store

    def _store(self) -> None:
        self._store_by()

    def before_own(self, own: Connection) -> None:
        """Store the end, and commit the others."""
        with rolled_back_by_an_error(own):
            self._store_once()
            self._commit_others()
        self.has_committed = True
