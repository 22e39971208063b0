"""The base class of all models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.orm import InstanceState, Session
from sqlalchemy.orm.attributes import instance_state


def now() -> Any:
    """Return the server's current time, as a column's default."""
    return sa.func.clock_timestamp()


class Row:
    """The base class of all models.

    The constructor takes keywords, even if the application's registry has a different constructor.
    """

    if TYPE_CHECKING:
        __table__: ClassVar[sa.FromClause]
        __tablename__: ClassVar[str]

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            if not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no column {name!r}")
            setattr(self, name, value)

    def __repr__(self) -> str:
        loaded = instance_state(self).dict
        shown = {key: loaded[key] for key in ("id", "name", "task", "state", "outcome") if key in loaded}
        return f"<{type(self).__name__} {' '.join(f'{key}={value!s}' for key, value in shown.items())}>"


def id_in(session: Session | None, row: Row) -> int | None:
    """Return the id of a row, without loading the row. Flush it first if it is pending in the session.

    Return None for a row that is not in the database.
    """
    state: InstanceState[Any] = instance_state(row)
    if session is not None and state.pending and state.session is session:
        session.flush()
    return None if state.identity is None else int(state.identity[0])
