"""Pages that begin after a row, by its id: they do not shift while rows come, and cost the same at any depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.errors import JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import ask, readable
from sqla_jobs.rules.value_checks import read_id


class BadCursor(JobsError):
    """A URL without a valid position in the list."""


def read_after(text: str | None) -> int | None:
    """Return the id after which a page begins; None for the first page. Raises `BadCursor`."""
    try:
        return read_id(text) if text else None
    except ValueError:
        raise BadCursor(f"after={text!r:.40} is not an id: start from the first page") from None


@dataclass(frozen=True)
class Order:
    """An order that an index provides. The last of `columns` is the id, and all have the same direction."""

    name: str
    title: str
    columns: tuple[Any, ...]
    is_descending: bool = False

    def by(self) -> list[Any]:
        """Return the columns for ORDER BY."""
        return [column.desc() if self.is_descending else column.asc() for column in self.columns]

    def beyond(self, session: Session, jobs: Jobs[Any], after: int) -> sa.ColumnElement[bool]:
        """Return the condition for rows after the row with the id `after`. Raises `BadCursor` if that row is gone.

        Rows without a value in the first column come first in a descending order, and last in an ascending one. In an
        ascending order, only the first page can show such rows, since one index condition cannot express both cases.
        """
        first, *rest = self.columns
        key: Any = ask(session, jobs, sa.select(*map(readable, self.columns)).where(self.columns[-1] == after)).first()
        if key is None:
            raise BadCursor(f"row {after}, after which this page begins, is gone: start from the first page")
        if key[0] is None:
            same = sa.and_(first.is_(None), self._past(rest, key[1:]))
            return sa.or_(same, first.is_not(None)) if self.is_descending else same
        bound = sa.literal(key[0], first.type)  # redundant, but it lets the server use the index
        return sa.and_(self._past(self.columns, key), first <= bound if self.is_descending else first >= bound)

    def _past(self, columns: Sequence[Any], key: Sequence[Any]) -> sa.ColumnElement[bool]:
        given = sa.tuple_(*(sa.literal(value, column.type) for value, column in zip(key, columns, strict=True)))
        return sa.tuple_(*columns) < given if self.is_descending else sa.tuple_(*columns) > given
