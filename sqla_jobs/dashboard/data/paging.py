"""Keyset pagination: pages do not shift while rows come and go, and cost the same at any depth."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from sqla_jobs.errors import ArgumentsError, JobsError
from sqla_jobs.rules.value_checks import check_text


class BadCursor(JobsError):
    """A URL without a valid position in the list."""


@dataclass(frozen=True)
class Order:
    """An order that an index provides. The last of `columns` is unique, and all have the same direction."""

    name: str
    title: str
    columns: tuple[Any, ...]
    is_descending: bool = False

    def by(self) -> list[Any]:
        """Return the columns for ORDER BY."""
        return [column.desc() if self.is_descending else column.asc() for column in self.columns]

    def beyond(self, key: Sequence[Any]) -> sa.ColumnElement[bool]:
        """Return the condition for rows after the row with `key`.

        Rows without a value in the first column come first in a descending order, and last in an ascending one. In an
        ascending order, only the first page can show such rows, since one index condition cannot express both cases.
        """
        first, *rest = self.columns
        if key[0] is None:
            same = sa.and_(first.is_(None), self._past(rest, key[1:]))
            return sa.or_(same, first.is_not(None)) if self.is_descending else same
        bound = sa.literal(key[0], first.type)  # redundant, but it lets the server use the index
        return sa.and_(self._past(self.columns, key), first <= bound if self.is_descending else first >= bound)

    def _past(self, columns: Sequence[Any], key: Sequence[Any]) -> sa.ColumnElement[bool]:
        given = sa.tuple_(*(sa.literal(value, column.type) for value, column in zip(key, columns, strict=True)))
        return sa.tuple_(*columns) < given if self.is_descending else sa.tuple_(*columns) > given

    def write(self, key: Sequence[Any]) -> str:
        """Write a key for a URL."""
        values = [value.isoformat() if isinstance(value, datetime) else value for value in key]
        return base64.urlsafe_b64encode(json.dumps(values, separators=(",", ":")).encode()).decode().rstrip("=")

    def read(self, text: str) -> list[Any]:
        """Read the key in a URL. Raises `BadCursor`."""
        try:
            values = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            return [
                _as(column.type, value) if value is not None or column is not self.columns[0] else None
                for column, value in zip(self.columns, values, strict=True)
            ]
        except (ValueError, TypeError, RecursionError, OverflowError, ArgumentsError):
            raise BadCursor(
                f"{text!r:.40} names no place in this list: start from its first page, without after="
            ) from None


_BITS = {sa.SmallInteger: 15, sa.Integer: 31, sa.BigInteger: 63}


def _as(column_type: Any, value: Any) -> Any:
    kind = column_type.python_type
    if kind is datetime:
        moment = datetime.fromisoformat(value)
        if moment.utcoffset() is None:
            raise ValueError("no time zone")
        return moment
    if kind is int and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError("no number")
    if kind is int and not -(limit := 2 ** _BITS[type(column_type)]) <= value < limit:
        raise ValueError("too large for the column")
    if kind is str and not isinstance(value, str):
        raise ValueError("no text")
    return check_text("after", value) if isinstance(value, str) else value
