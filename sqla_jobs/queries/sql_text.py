"""SQL text, and the one way to fill it in.

`$jobs` stands for a table's name, `$piece` for a piece of SQL, `$piece(x)` for a piece about `x`, and `:name` for a
parameter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType, MappingProxyType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.types import NullType, TypeEngine

from sqla_jobs.queries import free_places, pieces
from sqla_jobs.queries.expressions import Tables, lock_key, quoted

Pieces = Mapping[str, str | Callable[[str], str]]
"""Pieces of SQL by name. A function makes a piece about the SQL text in the parentheses."""
NO_PIECES: Pieces = MappingProxyType({})
_NAME = re.compile(r"\$([a-z_]+)(?:\(((?:[^()]|\([^()]*\))*)\))?")
_ARRAYS = re.compile(r"CAST\(:(\w+) AS \w+\[\]\)")
_SHARED: Pieces = {
    name.lower(): piece
    for module in (pieces, free_places)
    for name, piece in vars(module).items()
    if (name.isupper() and isinstance(piece, str)) or isinstance(piece, FunctionType)
}


class _Written(sa.TypeDecorator[str]):
    """An array in PostgreSQL's text format, bound as text for asyncpg, which would otherwise expect a list."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> TypeEngine[Any]:
        return sa.Text() if dialect.driver == "asyncpg" else NullType()


def filled(text: str, tables: Tables, own: Pieces = NO_PIECES) -> str:
    """Return the text with its names filled in: tables and sequences, or pieces.

    These are the pieces in `own`, those of the modules `pieces` and `free_places`, `$channel`, the channel of
    notifications as a literal, and `$lock_key(order)`, the key of an advisory lock.
    """
    named = {name: quoted(one) for name, one in vars(tables).items() if isinstance(one, sa.TableClause | sa.Sequence)}
    named |= {"channel": str(sa.literal(tables.channel).compile(compile_kwargs={"literal_binds": True}))}
    pieces_of = {**_SHARED, "lock_key": partial(lock_key, tables), **own}

    def fill(found: re.Match[str]) -> str:
        name, about = found.groups()
        piece = named.get(name) or pieces_of[name]
        if not isinstance(piece, str):
            return _NAME.sub(fill, piece(about))
        after = "" if about is None else _NAME.sub(fill, f"({about})")  # parentheses that happen to follow
        return (piece if name in named else _NAME.sub(fill, piece)) + after

    return _NAME.sub(fill, text)


def bound(text: str, tables: Tables, own: Pieces = NO_PIECES) -> sa.TextClause:
    """Return the text as a statement. What it casts to an array is bound as text in PostgreSQL's format of arrays."""
    statement = filled(text, tables, own).strip()  # as people read it in pg_stat_activity
    return sa.text(statement).bindparams(*(sa.bindparam(name, type_=_Written()) for name in _ARRAYS.findall(statement)))
