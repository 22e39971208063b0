"""Rows that the server refuses to change, because of what they are: the others of their batch are changed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import psycopg
from sqlalchemy.exc import DBAPIError

from sqla_jobs.telling import message_of

T = TypeVar("T")
log = logging.getLogger("sqla_jobs")

_NO_ROWS_FAULT = ("08", "0A", "25", "28", "3D", "3F", "40", "42", "53", "55", "57", "58", "F0", "XX")
"""Classes of SQLSTATE that blame no row: connections, transactions, rights, tables, resources, operators, the server.
A trigger of the application's refuses with any other, such as P0001 of RAISE EXCEPTION; a constraint with 23."""


def blames_a_row(error: Exception) -> bool:
    """Whether the same statement may succeed for other rows."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    state: str | None = getattr(cause, "sqlstate", None)
    return state is not None and not state.startswith(_NO_ROWS_FAULT)


def in_parts(
    ids: Sequence[int], step: Callable[[Sequence[int]], T], refused: Callable[[int, Exception], None]
) -> list[T]:
    """`step(ids)`, and where the server refuses that the same for each half, down to the culprits: `refused` is told.

    `step` is a transaction or savepoint of its own. Returns what the steps return, in order.
    """
    if not ids:
        return []
    try:
        return [step(ids)]
    except (DBAPIError, psycopg.Error) as error:
        if not blames_a_row(error):
            raise
        if len(ids) == 1:
            refused(ids[0], error)
            return []
    half = len(ids) // 2
    return in_parts(ids[:half], step, refused) + in_parts(ids[half:], step, refused)


def reason(error: Exception) -> str:
    """What the server says, without the row that it may quote."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return message_of(cause or error).strip()


def warn(verb: str, kind: str, row_id: int, error: Exception) -> None:
    """Tell of a culprit in the log."""
    log.warning("the server refuses to %s %s %d, so it stays: %s", verb, kind, row_id, reason(error))
