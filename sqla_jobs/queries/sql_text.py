"""SQL text: `$jobs` stands for a table's name, `$piece` for a piece of SQL, and `:name` for a parameter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

import sqlalchemy as sa

from sqla_jobs.queries import pieces
from sqla_jobs.queries.expressions import Tables, quoted, takes_turn
from sqla_jobs.queries.free_places import with_arrays

NO_PIECES: Mapping[str, str] = MappingProxyType({})
_NAME = re.compile(r"\$([a-z_]+)")
_SHARED = {name.lower(): piece for name, piece in vars(pieces).items() if name.isupper() and isinstance(piece, str)}


def filled(text: str, tables: Tables, own: Mapping[str, str] = NO_PIECES) -> str:
    """Return the text with its names filled in: the tables and sequences, the pieces in `own`, and those of `pieces`.

    `$channel` is the channel of notifications as a literal, and `$takes_turn` tries to take the lock of `takes_turn`.
    """
    named = {name: quoted(one) for name, one in vars(tables).items() if isinstance(one, sa.TableClause | sa.Sequence)}
    named |= {"channel": str(sa.literal(tables.channel).compile(compile_kwargs={"literal_binds": True}))}
    pieces_of = {**_SHARED, "takes_turn": takes_turn(tables), **own}

    def fill(found: re.Match[str]) -> str:
        name = found[1]
        return named[name] if name in named else _NAME.sub(fill, pieces_of[name])

    return _NAME.sub(fill, text)


def bound(text: str, tables: Tables, own: Mapping[str, str] = NO_PIECES) -> sa.TextClause:
    """Return the text as a statement. What it casts to an array is bound as text in PostgreSQL's format of arrays."""
    return with_arrays(filled(text, tables, own))
