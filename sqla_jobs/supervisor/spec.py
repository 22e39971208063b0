"""What a child loads, and how it is to work."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqla_jobs.runtime.logs import LogOptions
from sqla_jobs.runtime.settings import Settings

OF_CHILD, OF_PARENT, OF_CLOCK = 4, 3, 1
"""Connections to the server at once. A child claims by two, one of which is for limits, and stores ends by two.
A parent beats, polls and listens. The clock of a child does not listen."""


@dataclass(frozen=True, slots=True)
class Application:
    """What a child loads, by name since the parent does not import it, and how it logs."""

    name: str
    logs: LogOptions


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """To the child: how to work, after it has sent its application's config."""

    database_url: str | None
    settings: Settings
    drain: bool
    clock: bool
    """Whether to run a clock beside the worker."""
    logs: LogOptions
    is_observed: bool = False
    """Whether to tell the parent each second how the worker does."""
    connections: int = OF_CHILD + OF_PARENT
    """Connections of this child, without those of the clock and of its jobs."""

    def connections_of(self, processes: int, sessions: int) -> int:
        """Connections that this many children, each with so many for its jobs, their parent and the clock may use."""
        return OF_PARENT + (OF_CLOCK if self.clock else 0) + processes * (OF_CHILD + sessions)

    def of_number(self, number: int) -> ChildSpec:
        """For one of several children: only the first one runs the clock, prunes, and tells of its parent."""
        if number == 1:
            return self
        return replace(self, clock=False, connections=OF_CHILD, settings=replace(self.settings, retention=None))
