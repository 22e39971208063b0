"""The end of a task's transaction where the driver is not psycopg: a statement more, through SQLAlchemy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from sqlalchemy import Connection, event

from sqla_jobs.queries.ending import Ending, rolled_back_by_an_error


class EndingElsewhere(Ending):
    """`store` stores the end in the transaction, which goes on."""

    def __init__(self, connection: Connection, store: Callable[[], None]) -> None:
        super().__init__(connection)
        self._store_by = store

    def __enter__(self) -> Self:
        event.listen(self._connection, "commit", self._before_own)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        event.remove(self._connection, "commit", self._before_own)
        super().__exit__(kind)

    def _store(self) -> None:
        self._store_by()

    def _before_own(self, own: Connection) -> None:
        """Store the end, and commit the others."""
        with rolled_back_by_an_error(own):
            self._store_once()
            self._commit_others()
        self.has_committed = True
