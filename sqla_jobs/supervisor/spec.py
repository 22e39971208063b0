"""What a parent and its children are to do."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.rules.checks import DAY, INSTANT, check_integer, check_seconds
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


MOST_PROCESSES = 1000
_SILENT = 5.0
"""Seconds without a sign of life after which a child makes no progress."""


@dataclass(frozen=True, slots=True)
class SupervisorOptions:
    """How many children there are, and when one is replaced or killed. Times are seconds, memory bytes."""

    processes: int = 1
    max_jobs: int = 0
    max_memory: int = 0
    """0 sets no limit."""
    kill_after: float = 10.0
    """Seconds after a job's timeout until its process is killed, if the job cannot be interrupted."""
    hung_after: float = 300.0
    """Seconds without progress of any kind until a process is killed; 0 for never."""
    reload: bool = False
    """Whether to try again when the application cannot be imported: somebody is editing it."""

    def __post_init__(self) -> None:
        check_integer("--processes", self.processes, least=1, most=MOST_PROCESSES, error=ConfigurationError)
        check_integer("--max-jobs", self.max_jobs, least=0, most=10**9, error=ConfigurationError)
        check_integer("--max-memory", self.max_memory // 2**20, least=0, most=10**9, error=ConfigurationError)
        check_seconds("--kill-after", self.kill_after, least=INSTANT, most=DAY, error=ConfigurationError)
        check_seconds("--hung-after", self.hung_after, most=DAY, error=ConfigurationError)

    @property
    def silent_after(self) -> float:
        """Seconds without progress after which others get what a child has not begun."""
        return min(_SILENT, self.hung_after / 2) if self.hung_after else _SILENT

    def is_spent(self, runs: int, memory: int) -> bool:
        """Whether a child is to be replaced, by its number of runs and its memory."""
        return runs > 0 and (0 < self.max_jobs <= runs or 0 < self.max_memory < memory)
