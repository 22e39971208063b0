"""The rows with encrypted values, for the rotation of keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import JobState
from sqla_jobs.rules.redaction import ENCRYPTED

COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "jobs": (("args",), ("progress_message",)),
    "runs": (("result",), ("error", "traceback")),
    "steps": (("result",), ()),
    "signals": (("payload",), ()),
}
"""The columns that may be encrypted, by table: those of JSON, and those of text."""

Key = tuple[Any, ...]
Texts = tuple[str | None, ...]


class EncryptedRows:
    """The encrypted rows of one of the tables in `COLUMNS`: their primary keys, and the texts of these columns."""

    def __init__(self, models: Models[Any], noun: str) -> None:
        table, self._job, (of_json, of_text) = models.tables[noun], models.tables["jobs"], COLUMNS[noun]
        self._noun, self._table, self._keys = noun, table, [*table.primary_key.columns]
        names = (*of_json, *of_text)
        texts = [sa.cast(table.c[name], sa.Text) for name in names]
        is_encrypted = sa.or_(
            *(sa.cast(table.c[name], sa.Text).contains(f'{{"{ENCRYPTED}": "', autoescape=True) for name in of_json),
            *(table.c[name].startswith(f'{{"{ENCRYPTED}":"', autoescape=True) for name in of_text),
        )
        self._rows = sa.select(*self._keys, *texts)
        marked = is_encrypted.label("is_encrypted")
        self._next = sa.select(*self._keys, marked, *(sa.case((is_encrypted, text)) for text in texts))
        new = {
            name: sa.cast(sa.bindparam(f"new_{name}", type_=sa.Text), JSONB if name in of_json else sa.Text)
            for name in names
        }
        self._params = [*(f"key_{key.name}" for key in self._keys), *(f"new_{name}" for name in names)]
        self._write = (
            sa.update(table).where(*(key == sa.bindparam(f"key_{key.name}") for key in self._keys)).values(new)
        )

    def read(self, connection: sa.Connection, *, after: Key | None, most: int) -> tuple[dict[Key, Texts], Key | None]:
        """Look at the next `most` rows of the table, in the order of their keys.

        Return the encrypted ones, and the last key, which is None at the table's end.
        """
        beyond = sa.true() if after is None else sa.tuple_(*self._keys) > sa.tuple_(*after)
        rows = connection.execute(self._next.where(beyond).order_by(*self._keys).limit(most)).all()
        keys, size = [(*row[: len(self._keys)],) for row in rows], len(self._keys) + 1
        found = {key: (*row[size:],) for key, row in zip(keys, rows, strict=True) if row.is_encrypted}
        return found, keys[-1] if len(rows) == most else None

    def lock(self, connection: sa.Connection, keys: Collection[Key]) -> dict[Key, Texts]:
        """Lock and return those of the rows that nobody else has locked, and whose job is not running."""
        free = self._rows.where(sa.tuple_(*self._keys).in_([*keys]), self._is_at_rest())
        return self._found(connection, free.with_for_update(key_share=True, skip_locked=True))

    def write(self, connection: sa.Connection, rows: Mapping[Key, Texts]) -> None:
        """Store the texts of locked rows."""
        connection.execute(
            self._write, [dict(zip(self._params, key + texts, strict=True)) for key, texts in rows.items()]
        )

    def _found(self, connection: sa.Connection, rows: Any) -> dict[Key, Texts]:
        size = len(self._keys)
        return {(*row[:size],): (*row[size:],) for row in connection.execute(rows)}

    def _is_at_rest(self) -> sa.ColumnElement[bool]:
        if self._noun == "runs":  # written at their end
            return sa.true()
        if self._noun == "jobs":
            return self._job.c.state != JobState.running
        of_row = self._job.c.id == self._table.c.job_id
        return ~sa.select(self._job.c.id).where(of_row, self._job.c.state == JobState.running).exists()
