"""Isolation of rows that the server refuses to change, so that the other rows of a batch are still changed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import psycopg

from sqla_jobs.rules.error_text import message_of

R = TypeVar("R")
T = TypeVar("T")
log: logging.Logger = logging.getLogger("sqla_jobs")

_NO_ROWS_FAULT = ("08", "0A", "25", "28", "3D", "3F", "40", "42", "53", "55", "57", "58", "F0", "XX")
"""SQLSTATE classes that no row causes: connections, transactions, privileges, tables, resources, operators, the server.

With any other code, a row is to blame. Examples are 23, for a violated constraint, and P0001, for RAISE EXCEPTION in an
application's trigger.
"""


def cause_of(error: BaseException) -> BaseException:
    """Return the driver's error that SQLAlchemy has wrapped, or the error itself."""
    return getattr(error, "orig", None) or error


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, then the errors that led to it: an application may raise its own in place of the database's."""
    seen: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in seen:
        yield found
        seen.append(found)
        found = found.__cause__ or found.__context__


def blames_a_row(error: Exception) -> bool:
    """Return whether the same statement may succeed for other rows.

    A plain `UnicodeError` is raised for text that the connection's encoding cannot represent.
    """
    cause = cause_of(error)
    state: str | None = getattr(cause, "sqlstate", None)
    if state is None:
        return isinstance(cause, UnicodeError)
    is_in_trigger = state.startswith("42") and isinstance(cause, psycopg.Error) and bool(cause.diag.context)
    return is_in_trigger or not state.startswith(_NO_ROWS_FAULT)


def in_parts(rows: Sequence[R], step: Callable[[Sequence[R]], T], refused: Callable[[R, Exception], None]) -> list[T]:
    """Call `step(rows)`. If the server blames a row, repeat with each half. A single blamed row goes to `refused`.

    Each call to `step` is its own transaction or savepoint. Return the results of the successful calls, in order.
    """
    if not rows:
        return []
    try:
        return [step(rows)]
    except Exception as error:
        if not blames_a_row(error):
            raise
        if len(rows) == 1:
            refused(rows[0], error)
            return []
    half = len(rows) // 2
    return in_parts(rows[:half], step, refused) + in_parts(rows[half:], step, refused)


def reason(error: Exception) -> str:
    """Return the server's message, without the row that it may quote."""
    return message_of(cause_of(error)).strip()


def warn(verb: str, kind: str, row_id: int, error: Exception) -> None:
    """Log a warning about a row that the server refuses to change."""
    log.warning("the server refuses to %s %s %d, so it stays: %s", verb, kind, row_id, reason(error))
