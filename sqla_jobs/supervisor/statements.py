"""The statements that a parent sends. A child renders them: the parent does not import SQLAlchemy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

from sqla_jobs.calls import lookout, upkeep
from sqla_jobs.calls.call import Call
from sqla_jobs.calls.calls import Calls, StoreEnds
from sqla_jobs.supervisor.messages import Statements

if TYPE_CHECKING:
    from sqla_jobs.queries import Queries

_KINDS: dict[str, type[Call[Any]]] = {
    "beat": upkeep.Beat,
    "heartbeats": upkeep.Heartbeats,
    "delete_expired": upkeep.DeleteExpired,
    "sign_off": upkeep.SignOff,
    "rescue": upkeep.Rescue,
    "to_rescue": upkeep.Candidates,
    "leases": upkeep.Leases,
    "cancel_requests": upkeep.CancelRequests,
    "finish_any": upkeep.FinishAny,
    "show_set_aside": upkeep.ShowSetAside,
    "show_stalled": upkeep.ShowStalled,
    "promote": lookout.Promote,
    "to_promote": upkeep.Candidates,
    "poll": lookout.Poll,
    "unknown_to": lookout.UnknownTo,
}


def rendered_for_parent(queries: Queries, channel: str) -> Statements:
    """In a child: the statements for its parent."""
    return Statements(channel, {name: getattr(queries, name).rendered for name in _KINDS})


class ParentCalls(Calls[psycopg.Connection[Any]]):
    """In the parent: the statements that a child has rendered, sent by psycopg."""

    finish: StoreEnds[psycopg.Connection[Any]]
    sign_off: upkeep.SignOff[psycopg.Connection[Any]]
    leases: upkeep.Leases[psycopg.Connection[Any]]
    cancel_requests: upkeep.CancelRequests[psycopg.Connection[Any]]
    show_stalled: upkeep.ShowStalled[psycopg.Connection[Any]]
    poll: lookout.Poll[psycopg.Connection[Any]]

    def __init__(self, statements: Statements) -> None:
        for name, kind in _KINDS.items():
            setattr(self, name, kind(statements.rendered[name]))
        self.finish = self.finish_any  # a parent stores no ends that went well
