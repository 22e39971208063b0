"""The transactions in which transactional tasks run."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any, Protocol

import psycopg
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, SessionTransaction

from sqla_jobs.database.async_sessions import around, end_run, is_awaited, read_anew
from sqla_jobs.database.commits import is_waiting
from sqla_jobs.database.refusals import chain_of
from sqla_jobs.errors import JobsError
from sqla_jobs.execution.interrupt import Interrupt
from sqla_jobs.queries import Queries, RunEnd
from sqla_jobs.queries.begin import has_written
from sqla_jobs.queries.ending import Ending
from sqla_jobs.queries.steps import NewStep
from sqla_jobs.rules.every import Every

log: logging.Logger = logging.getLogger("sqla_jobs.run")
_AGAIN = (1.0, 2.0)
"""A job that got no transaction is tried again after a random delay between these bounds, in seconds."""
_SAY_AGAIN = 60.0
"""Seconds between two warnings about failures to get a transaction."""


_CONNECTIONS = "sqla_jobs.database.engines"
"""The key in a run's `session.info` for the connections on which the session has begun transactions."""
_ENDING = "sqla_jobs.ending"
"""The key in a run's `session.info` for the COMMIT in progress."""
_COMMITTED = "sqla_jobs.committed"
"""The key in a run's `session.info` for a flag, set during the last commit: whether the database has committed."""
_UNUSED = "sqla_jobs.unused"
"""The key in a lazy run's `session.info`, present until the run's transaction begins."""


@cache
def _listen_to_sessions() -> None:
    event.listen(Session, "after_begin", _note_connection)
    # before the application's listeners, which may raise
    event.listen(Session, "after_commit", _note_commit, insert=True)


def _note_connection(session: Session, transaction: SessionTransaction, connection: sa.Connection) -> None:
    connections: list[sa.Connection] | None = session.info.get(_CONNECTIONS)
    if connections is None or connection in connections:
        return
    connections.append(connection)
    if (ending := session.info.get(_ENDING)) is not None:  # a commit hook has begun this transaction
        ending.watch(connection)


def _note_commit(session: Session) -> None:
    if _COMMITTED in session.info and not session.in_nested_transaction():
        session.info[_COMMITTED] = True


def _roll_back(session: Session) -> None:
    """Roll back after an interrupt, which may have arrived during a query. An error must not replace the interrupt."""
    try:
        session.rollback()
    except Exception as error:  # noqa: BLE001 - the connection cannot be used any more
        log.debug("the connection of an interrupted run is closed: %s", _reason(error))
        session.invalidate()


def _reason(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return str(cause).strip() or type(cause).__name__


def _is_of_database(error: Exception) -> bool:
    """Return whether the error comes from the database.

    SQLAlchemy wraps neither asyncpg's connection errors nor the `OSError`s of the network.
    """
    is_of_asyncpg = type(error).__module__.partition(".")[0] == "asyncpg"
    return is_of_asyncpg or isinstance(error, DBAPIError | PoolTimeout | psycopg.Error | OSError)


class NotBegun(Exception):
    """The task's code did not begin, for a reason outside the task. The job is released."""

    def __init__(self, reason: str, delay: float) -> None:
        super().__init__(reason)
        self.delay: float = delay
        """Seconds until the job is due again."""


class RaisedAfterCommit(Exception):
    """The transaction has committed, but code that ran afterwards, such as a listener, raised the `__cause__`."""


def _no_transaction(reason: str) -> NotBegun:
    """Return the error for a database that provides no writable transaction."""
    return NotBegun(reason, random.SystemRandom().uniform(*_AGAIN))  # a task may have seeded the global generator


class Transactions(Protocol):
    """The transactions in which transactional tasks write and record their ends."""

    isolation: str
    """The isolation level of the sessions."""
    rows_may_come: bool
    """True if a row that is not there may be committed by somebody else."""

    def begin(self) -> AbstractContextManager[Session]:
        """Open a session in a transaction, which is rolled back unless `commit` is called. Raises `NotBegun`."""
        ...

    def around(self, session: Session) -> Any:
        """Return the `AsyncSession` around a session from `begin`, for a coroutine task."""
        ...

    def commit(self, session: Session, end: RunEnd) -> None:
        """Record the end of the attempt in the transaction's last statement, and commit.

        Raises `LeaseLost`, `RowHeld` and `RaisedAfterCommit`.
        """
        ...

    def has_written(self, session: Session) -> bool:
        """Return whether a session has changes, or its transaction has written or locked rows."""
        ...

    def commit_part(self, session: Session, step: NewStep) -> str | None:
        """Commit what the run has written so far, together with a step. Return the step's result as stored.

        Raises `LeaseLost` and `RowHeld`.

        The run then continues in a new transaction. The rows in its session are expired, or loaded again for a
        coroutine task.
        """
        ...

    def undo_part(self, session: Session) -> None:
        """Roll back what the run has written since the last commit, and continue in a new transaction."""
        ...


class WorkerTransactions:
    """One transaction per run, in a session from `session`. If a process disappears, its locks are soon released.

    The server notices a vanished host within about `lease` seconds, and within a minute at most. `patience` is how long
    a pooled connection may stay silent when a transaction begins on it.
    """

    rows_may_come: bool = True

    def __init__(
        self,
        session: Callable[[], Session],
        queries: Queries,
        *,
        lease: float,
        patience: float,
        isolation: str = "READ COMMITTED",
    ) -> None:
        self.isolation: str = isolation
        """The isolation level of the sessions."""
        self._session = session
        self._queries = queries
        self._lease = lease
        self._patience = patience
        self._warning = Every(_SAY_AGAIN)
        _listen_to_sessions()

    @contextmanager
    def begin(self) -> Generator[Session]:
        session = self._made()
        session.info[_CONNECTIONS] = list[sa.Connection]()  # the factory may return the same session again
        try:
            self._begin(session)
            yield session
        except Interrupt as interrupt:
            if interrupt.is_abandoned:  # the task's code is still running, and must not hold locks
                end_run(session)
                session.invalidate()
            else:
                _roll_back(session)
            raise
        finally:
            end_run(session)
            session.close()

    def _made(self) -> Session:
        """Return a session from the factory. Raises `NotBegun` if the factory itself tries to connect and fails."""
        try:
            return self._session()
        except Exception as error:
            refusals = OperationalError | PoolTimeout | psycopg.OperationalError
            if (refusal := next((one for one in chain_of(error) if isinstance(one, refusals)), None)) is None:
                raise
            raise self._logged(_no_transaction(_reason(refusal))) from error

    def around(self, session: Session) -> Any:
        return around(session)

    def commit(self, session: Session, end: RunEnd) -> None:
        ending: Ending | None = None
        session.info[_COMMITTED] = False
        try:
            self._queries.store_before_end(session, end)
            if session.twophase:  # the fence comes before anything is committed
                self._queries.succeed(session, end)
                session.commit()
            else:
                ending = self._queries.ending(session, end)
                self._commit_by(session, ending)
        except Exception as error:
            # a session in an outer transaction calls `after_commit` although nothing is committed
            if session.info[_COMMITTED] and (ending is None or ending.has_committed):
                raise RaisedAfterCommit from error
            raise
        finally:
            del session.info[_COMMITTED]

    def _commit_by(self, session: Session, ending: Ending) -> None:
        with ending:
            for connection in session.info[_CONNECTIONS]:
                ending.watch(connection)
            session.info[_ENDING] = ending
            try:
                session.commit()
            finally:
                del session.info[_ENDING]

    def has_written(self, session: Session) -> bool:
        if session.new or session.deleted or is_waiting(session) or any(map(session.is_modified, session.dirty)):
            return True
        begun = [one for one in session.info[_CONNECTIONS] if not one.closed and one.in_transaction()]
        return any(map(has_written, begun))

    def commit_part(self, session: Session, step: NewStep) -> str | None:
        if session.twophase:
            session.flush()
            result = self._queries.steps.record_in_session(self._queries.connection(session), step)
            session.commit()
        else:
            ending = self._queries.step_ending(session, step)
            self._commit_by(session, ending)
            result = ending.result
        self._go_on(session)
        return result

    def undo_part(self, session: Session) -> None:
        _roll_back(session)
        self._go_on(session)

    def _go_on(self, session: Session) -> None:
        """Begin the transaction in which the run continues.

        Raises `JobsError` if the database provides no transaction.
        """
        session.info[_CONNECTIONS].clear()
        try:
            self._begin(session)
        except NotBegun as error:
            raise JobsError(f"the run cannot go on in a new transaction: {error}") from error
        if is_awaited(session):
            read_anew(session)

    def _begin(self, session: Session) -> None:
        try:
            is_writable = self._begin_on(self._queries.connection(session))
        except Exception as error:
            if not _is_of_database(error):
                raise
            raise self._logged(_no_transaction(_reason(error))) from error
        if not is_writable:
            raise self._logged(_no_transaction("the server is read-only"))

    def _begin_on(self, connection: sa.Connection) -> bool:
        """Begin the transaction. Return False if the server accepts no writes."""
        try:
            is_writable = self._queries.begin(connection, noticed_within=self._lease, patience=self._patience)
        except psycopg.Error:
            if connection.invalidated:
                raise
            connection.exec_driver_sql("SELECT 1")  # this fails too, and makes SQLAlchemy invalidate its pool
            raise
        if not is_writable:
            connection.invalidate()  # the pool must reconnect, to a primary once there is one
        return is_writable

    def _logged(self, error: NotBegun) -> NotBegun:
        """Log the error, which many jobs may meet: as a warning at most once a minute, otherwise at DEBUG."""
        level = logging.WARNING if self._warning.is_over() else logging.DEBUG
        log.log(level, "transactional tasks get no transaction; their jobs wait, using no attempt: %.500s", error)
        return error


class LazyTransactions(WorkerTransactions):
    """The transactions of lazy tasks. Each transaction begins at the first use of its session, or at the commit.

    If the database then provides no transaction, the attempt fails, since the task has already begun.
    """

    @contextmanager
    def begin(self) -> Generator[Session]:
        with super().begin() as session:
            event.listen(session, "after_begin", self._after_begin)  # after the application's listeners
            try:
                yield session
            finally:  # the factory may return the same session again
                event.remove(session, "after_begin", self._after_begin)
                session.info.pop(_UNUSED, None)

    def _begin(self, session: Session) -> None:
        if session.in_transaction():  # it is a session of the application, whose middleware has used it
            super()._begin(session)
        else:
            session.info[_UNUSED] = True
            # this opens no connection; the task can then not begin and commit a transaction of its own
            session.begin()

    def _after_begin(self, session: Session, transaction: SessionTransaction, connection: sa.Connection) -> None:
        if _UNUSED not in session.info or not self._queries.is_of_jobs(session, connection):
            return
        del session.info[_UNUSED]
        if not self._begin_on(connection):
            raise JobsError("the server is read-only, so the run gets no transaction: the attempt fails by its policy")
