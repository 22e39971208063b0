"""One statement, as it is called also where SQLAlchemy is not imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

if TYPE_CHECKING:
    import psycopg

C_contra = TypeVar("C_contra", contravariant=True)
"""The kind of connection that it is sent by."""


class Rendered(NamedTuple):
    """A statement as psycopg takes it, and the parameters that are the same at each call."""

    text: str
    fixed: dict[str, Any]


class Call(Generic[C_contra]):
    """Sends a rendered statement by psycopg. The statements of `queries` are sent by SQLAlchemy instead."""

    def __init__(self, rendered: Rendered) -> None:
        self._sent = rendered

    def _rows(self, connection: C_contra, values: dict[str, Any]) -> list[Any]:
        text, fixed = self._sent
        by_psycopg = cast("psycopg.Connection[Any]", connection)
        return by_psycopg.execute(cast("Any", text), {**fixed, **values}).fetchall()
