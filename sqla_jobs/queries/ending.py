"""The COMMIT of a task's session, which also stores the attempt's end."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager

import sqlalchemy as sa
from sqlalchemy import event

from sqla_jobs.errors import JobsError


class Ending(AbstractContextManager["Ending"]):
    """The COMMIT on the connection to the jobs' database, and on the session's connections to other databases.

    Within the context, a commit on the connection to the jobs' database also stores the attempt's end. The commit
    waits for the job's row, or raises `LeaseLost`. SQLAlchemy commits a session's connections in no particular order.
    Here the other connections are committed after the lease is checked, and before the attempt's end is committed. So
    if another connection fails to commit, the job does not succeed.
    """

    has_committed: bool = False
    result: str | None = None
    """The result of the step as stored, if a step is stored."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._is_stored = False
        self._others: list[sa.Connection] = []

    def watch(self, connection: sa.Connection) -> None:
        """Register another of the session's connections. The connection to the jobs' database is ignored."""
        if connection is not self._connection:
            self._others.append(connection)
            event.listen(connection, "commit", self._before)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and not self.has_committed:
            raise JobsError(
                "the session of the run did not commit on its own connection, so the outcome is not stored: "
                "the session factory must return new sessions, not ones that join an outer transaction"
            )

    def _store(self) -> str | None:
        """Store the end or step in the transaction, and leave the transaction open. Return a step's stored result.

        Raises `LeaseLost` and `RowHeld`.
        """
        raise NotImplementedError

    def _before(self, connection: sa.Connection) -> None:
        with rolled_back_by_an_error(connection):
            self._store_once()

    def _store_once(self) -> None:
        if not self._is_stored:
            self.result = self._store()
            self._is_stored = True

    def _commit_others(self) -> None:
        for other in self._others:
            if other.in_transaction():
                try:
                    other.dialect.do_commit(other.connection)
                except BaseException as error:
                    other.invalidate(error)  # else it could commit later, although nothing checks the lease again
                    raise


@contextmanager
def rolled_back_by_an_error(connection: sa.Connection) -> Generator[None]:
    """Roll back after an error in a function that runs in place of COMMIT.

    SQLAlchemy assumes that a failed COMMIT has ended the transaction. Without the rollback, SQLAlchemy's pool would
    give the connection to another session, which would commit the open transaction.
    """
    try:
        yield
    except BaseException:
        if not connection.invalidated:
            try:
                connection.dialect.do_rollback(connection.connection)
            except Exception as error:  # noqa: BLE001 - the connection is lost; the first error is raised
                connection.invalidate(error)
        raise
