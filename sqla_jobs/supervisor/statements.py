"""The statements that a parent sends. A child renders the SQL, since the parent does not import SQLAlchemy."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_type_hints

from sqla_jobs.calls.statements import Call, Calls, StoreEnds
from sqla_jobs.supervisor.messages import Statements

if TYPE_CHECKING:
    from sqla_jobs.queries import Queries

_KINDS: dict[str, type[Call]] = {name: kind for name, kind in get_type_hints(Calls).items() if isinstance(kind, type)}


def rendered_for_parent(queries: Queries, channel: str) -> Statements:
    """In a child: render the statements for the parent."""
    return Statements(channel, {name: getattr(queries, name).rendered for name in _KINDS})


class ParentCalls(Calls):
    """In the parent: the statements that a child has rendered, sent by psycopg."""

    def __init__(self, statements: Statements) -> None:
        for name, kind in _KINDS.items():
            setattr(self, name, kind(statements.rendered[name]))
        self.finish: StoreEnds = self.finish_any  # a parent stores no successful ends
