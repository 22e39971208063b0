"""Rows that the server refuses to change, because of what they are: the others of their batch are changed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from sqlalchemy.exc import DBAPIError

log = logging.getLogger("sqla_jobs")

_NO_ROWS_FAULT = ("08", "0A", "25", "28", "3D", "3F", "40", "42", "53", "55", "57", "58", "F0", "XX")
"""Classes of SQLSTATE that blame no row: connections, transactions, rights, tables, resources, operators, the server.
A trigger of the application's refuses with any other, such as P0001 of RAISE EXCEPTION; a constraint with 23."""


def blames_a_row(error: DBAPIError) -> bool:
    """Whether the same statement may succeed for other rows."""
    state: str | None = getattr(error.orig, "sqlstate", None)
    return state is not None and not state.startswith(_NO_ROWS_FAULT)


def in_parts(
    ids: Sequence[int], step: Callable[[Sequence[int]], int], refused: Callable[[int, DBAPIError], None]
) -> int:
    """`step(ids)`, and where the server refuses that the same for each half, down to the culprits: `refused` is told.

    `step` is a transaction or savepoint of its own. The second half goes first, so that of rivals in ascending order
    the newest wins. Returns the sum of what the steps return.
    """
    if not ids:
        return 0
    try:
        return step(ids)
    except DBAPIError as error:
        if not blames_a_row(error):
            raise
        if len(ids) == 1:
            refused(ids[0], error)
            return 0
    half = len(ids) // 2
    return in_parts(ids[half:], step, refused) + in_parts(ids[:half], step, refused)


def reason(error: DBAPIError) -> str:
    """What the server says, in a line."""
    return (str(error.orig).splitlines() or ["no reason is given"])[0]


def warn(verb: str, kind: str, row_id: int, error: DBAPIError) -> None:
    """Tell of a culprit in the log."""
    log.warning("the server refuses to %s %s %d, so it stays: %s", verb, kind, row_id, reason(error))
