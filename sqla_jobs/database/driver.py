"""Access to psycopg's connections below SQLAlchemy. Only this module relies on undocumented behavior of psycopg.

`tests/database/test_driver.py` checks that behavior with the oldest and the newest psycopg.
"""

from __future__ import annotations

import asyncio
import logging
import select
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import psycopg
import sqlalchemy as sa
from psycopg import capabilities, generators
from psycopg.errors import error_from_result
from psycopg.pq import Escaping, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult
from sqlalchemy.util import await_only, greenlet_spawn

log: logging.Logger = logging.getLogger("sqla_jobs.database.engines")

T = TypeVar("T")
Driver = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]
"""The driver's connection. An asynchronous connection is used inside an SQLAlchemy greenlet."""


def driver(connection: sa.Connection) -> psycopg.Connection[Any]:
    """Return the driver's connection for one of the library's own engines."""
    return connection.connection.driver_connection  # type: ignore[return-value]


def driver_of_run(connection: sa.Connection) -> Driver | None:
    """Return the driver's connection for a task's session, or `None` if the driver is not psycopg."""
    raw = connection.connection.driver_connection
    return raw if isinstance(raw, psycopg.Connection | psycopg.AsyncConnection) else None


class NoAnswer(psycopg.OperationalError):
    """The server was silent for too long; the connection is closed."""


class ReadOnly(psycopg.OperationalError):
    """The server accepts no writes at present, as a standby does."""

    sqlstate: str | None = "25006"


def bound(connection: psycopg.Connection[Any], patience: float) -> None:
    """Make each wait of `connection` end with `NoAnswer` after `patience` seconds of silence.

    Only silence counts: sending a large batch, or receiving an answer slowly, may take longer.
    """
    plain = connection.wait

    def bounded(gen: Any, *args: Any, **options: Any) -> Any:
        try:
            return plain(_listening(gen, connection, patience), *args, **options)
        except NoAnswer:
            _abandon(connection, patience)
            raise

    vars(connection)["wait"] = bounded


def ask(connection: Driver, question: str, patience: float | None = None) -> list[PGresult]:
    """Return the answers to one or more statements, which are sent together, below SQLAlchemy.

    Raises a failed statement's error; the server skips the statements after it. With `patience`, raises `NoAnswer`
    after that many seconds of silence.
    """
    if isinstance(connection, psycopg.AsyncConnection):
        answers = await_only(_awaited(connection, question, patience))
    else:
        answers = _received(connection, question, patience)
    for answer in answers:
        if answer.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            raise error_from_result(answer, connection.info.encoding)
    return answers


def _received(connection: psycopg.Connection[Any], question: str, patience: float | None) -> list[PGresult]:
    server = connection.pgconn
    server.send_query(question.encode(connection.info.encoding))
    while server.flush():
        _wait(connection, select.POLLIN | select.POLLOUT, patience)
        server.consume_input()
    answers: list[PGresult] = []
    while True:
        while server.is_busy():
            _wait(connection, select.POLLIN, patience)
            server.consume_input()
        if (answer := server.get_result()) is None:
            return answers
        answers.append(answer)


async def _awaited(connection: psycopg.AsyncConnection[Any], question: str, patience: float | None) -> list[PGresult]:
    async with connection.lock:
        connection.pgconn.send_query(question.encode(connection.info.encoding))
        answers = generators.execute(connection.pgconn)
        if patience is None:
            return await connection.wait(answers)
        try:
            # no asyncio timeout: when cancelled, psycopg waits for the server's answer to the cancellation
            return await connection.wait(_listening(answers, connection, patience))
        except NoAnswer:
            await connection.close()
            raise


def within(patience: float, function: Callable[[], T]) -> T:
    """Return the result of `function()`, run in an SQLAlchemy greenlet. Raises `NoAnswer` after `patience` seconds."""

    async def awaited() -> T:
        try:
            async with asyncio.timeout(patience):
                return await greenlet_spawn(function)
        except TimeoutError as error:
            raise _no_answer(patience) from error

    return await_only(awaited())


def _no_answer(patience: float) -> NoAnswer:
    return NoAnswer(f"no answer from the server for {patience:g} s")


def quoted(connection: Driver, text: str | None) -> str:
    """Return a text as an SQL literal."""
    if text is None:
        return "NULL"
    encoding = connection.info.encoding
    return Escaping(connection.pgconn).escape_literal(text.encode(encoding)).decode(encoding)


def roll_back(connection: Driver) -> None:
    """Roll back on the driver's connection, below SQLAlchemy."""
    if isinstance(connection, psycopg.AsyncConnection):
        await_only(connection.rollback())
    else:
        connection.rollback()


def _wait(connection: psycopg.Connection[Any], events: int, patience: float | None) -> None:
    look = select.poll()
    look.register(connection.pgconn.socket, events)
    if patience is None:
        look.poll()
    elif not look.poll(1000 * patience):
        _abandon(connection, patience)
        raise _no_answer(patience)


def _listening(gen: Any, connection: Driver, patience: float) -> Generator[Any, Any, Any]:
    """Pass on the values that psycopg's own generator yields and returns. Raises `NoAnswer`.

    The socket's readiness is checked again: psycopg 3.2 reports "ready" even when only its interval has passed.
    """
    try:
        heard_at, wanted = time.monotonic(), next(gen)
        while True:
            ready = yield wanted
            if _is_ready(connection.pgconn.socket, wanted):
                heard_at = time.monotonic()
            elif time.monotonic() - heard_at > patience:
                raise _no_answer(patience)
            wanted = gen.send(ready)
    except StopIteration as end:
        return end.value


def _is_ready(fileno: int, wanted: int) -> bool:
    look = select.poll()
    look.register(fileno, (wanted & 1 and select.POLLIN) | (wanted & 2 and select.POLLOUT))
    return bool(look.poll(0))


def _abandon(connection: psycopg.Connection[Any], patience: float) -> None:
    """Close the connection, and ask the server to cancel its statement, so that server processes do not pile up.

    Before libpq 17, a cancel request could block all threads for any length of time, so none is sent with an older
    libpq.
    """
    if capabilities.has_cancel_safe():
        try:
            connection.cancel_safe(timeout=patience / 5)
        except psycopg.Error as error:
            log.debug("an abandoned statement could not be cancelled: %s", error)
    connection.close()


async def _in_greenlet(function: Callable[[], None]) -> None:
    from sqlalchemy.util import greenlet_spawn

    await greenlet_spawn(function)


class CommittingBy(AbstractContextManager[None]):
    """A context in which the first `connection.commit()` calls `commit()` instead."""

    def __init__(self, connection: Driver, commit: Callable[[], None]) -> None:
        self._own = vars(connection)
        self._commit = commit
        is_awaited = isinstance(connection, psycopg.AsyncConnection)
        self._mine: Callable[[], object] = partial(_in_greenlet, self._once) if is_awaited else self._once

    def __enter__(self) -> None:
        self._own["commit"] = self._mine

    def _once(self) -> None:
        del self._own["commit"]  # before the commit, since other code may replace the method afterwards
        self._commit()

    def __exit__(self, *_: object) -> None:
        if self._own.get("commit") is self._mine:
            del self._own["commit"]


def beginning(connection: Driver) -> str:
    """Return the BEGIN that psycopg would send with the application's settings; "" inside a transaction."""
    if connection.pgconn.transaction_status != TransactionStatus.IDLE:
        return ""
    level = connection.isolation_level
    words = ["BEGIN"] if level is None else [f"BEGIN ISOLATION LEVEL {level.name.replace('_', ' ')}"]
    if connection.read_only is not None:
        words.append("READ ONLY" if connection.read_only else "READ WRITE")
    if connection.deferrable is not None:
        words.append("DEFERRABLE" if connection.deferrable else "NOT DEFERRABLE")
    return f"{' '.join(words)}; "


def execute(connection: psycopg.Connection[Any], statement: str, values: Sequence[Any]) -> psycopg.Cursor[Any]:
    """Execute a statement with numbered parameters, such as `$1`. psycopg sends its text as it is."""
    return psycopg.RawCursor(connection).execute(cast("Any", statement), values)


Send = Callable[[str, Sequence[Any]], "psycopg.Cursor[Any]"]
"""Sends a statement with its numbered parameters. Its rows can be read after the block of `committed_together`."""


@contextmanager
def committed_together(connection: psycopg.Connection[Any]) -> Generator[Send]:
    """Send the block's statements as one transaction, in one round trip.

    Each statement sees all changes committed before it began, whatever the database's default isolation level.
    """

    try:
        with connection.pipeline():
            connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
            yield partial(execute, connection)
            connection.execute("COMMIT")
    except BaseException:
        if not connection.closed:
            connection.rollback()
        raise
