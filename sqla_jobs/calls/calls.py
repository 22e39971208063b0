"""The statements that workers, clocks and the parents of workers have in common, and what they are sent in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Generic, Protocol, TypeVar

from sqla_jobs.calls import lookout, upkeep
from sqla_jobs.calls.call import C_contra
from sqla_jobs.calls.values import RunEnd

Given_co = TypeVar("Given_co", covariant=True)
StoreEnds = Callable[[C_contra, Sequence[RunEnd]], dict[int, str]]


class Transactions(Protocol[Given_co]):
    """An engine of SQLAlchemy's, or what a process without SQLAlchemy has instead."""

    def begin(self) -> AbstractContextManager[Given_co]:
        """A connection. What is sent in one block is committed at its end, or each statement by itself."""
        ...


class Calls(Generic[C_contra]):
    """Each takes a connection first."""

    beat: upkeep.Beat[C_contra]
    heartbeats: upkeep.Heartbeats[C_contra]
    delete_expired: upkeep.DeleteExpired[C_contra]
    rescue: upkeep.Rescue[C_contra]
    to_rescue: upkeep.Candidates[C_contra]
    finish: StoreEnds[C_contra]
    finish_any: upkeep.FinishAny[C_contra]
    show_set_aside: upkeep.ShowSetAside[C_contra]
    promote: lookout.Promote[C_contra]
    to_promote: upkeep.Candidates[C_contra]
    unknown_to: lookout.UnknownTo[C_contra]
