"""The configuration of a parent and its children."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqla_jobs.database.shard_name import Where
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.rules.value_checks import DAY, INSTANT, check_integer, check_seconds
from sqla_jobs.runtime.logs import LogOptions
from sqla_jobs.runtime.settings import Settings

OF_CHILD, OF_PARENT, OF_CLOCK = 4, 3, 1
"""How many server connections a child, its parent and its clock have.

A child has two connections for claims, one of them for limits, and two for the ends of runs and the rest. A parent has
one connection each for heartbeats, polls and listening, and one more if it serves metrics. A child's clock does not
listen.
"""


@dataclass(frozen=True, slots=True)
class Application:
    """The name of the application that a child loads, and its logging options.

    The parent does not import the application.
    """

    name: str
    logs: LogOptions


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """The configuration of a child. The parent sends it in reply to the child's `Configured` message."""

    where: Where
    settings: Settings
    drain: bool
    clock: bool
    """True to run a clock beside the worker."""
    logs: LogOptions
    is_observed: bool = False
    """True to report the worker's state to the parent each second."""
    connections: int = OF_CHILD
    """The number of this child's connections, except those of the clock and of the jobs."""

    @property
    def of_parent(self) -> int:
        """How many connections to each database the parent has."""
        return OF_PARENT + self.is_observed

    @property
    def half_lease(self) -> float:
        """The seconds for which a job may surely go on after the last heartbeat."""
        return self.settings.lease / 2

    def connections_of(self, processes: int, sessions: int) -> int:
        """Return how many connections to one database all children, their jobs, their parent and the clock may use.

        There are `processes` children, each with up to `sessions` connections for its jobs.
        """
        return self.of_parent + (OF_CLOCK if self.clock else 0) + processes * (OF_CHILD + sessions)

    def names(self, bound: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the databases to serve. A single database may have an empty name.

        `bound` are those that the application binds.
        """
        return (self.where.shard,) if self.where.shard is not None else tuple(self.where.urls) or bound or ("",)

    def of_child(self, shard: str, number: int) -> ChildSpec:
        """Return the spec of one of the children of a database.

        Only the first of them runs the clock, prunes, and counts its parent's connections.
        """
        spec = replace(self, where=self.where._replace(shard=shard)) if shard else self
        if number == 1:
            return replace(spec, connections=OF_CHILD + self.of_parent)
        return replace(spec, clock=False, settings=replace(self.settings, retention=None))


AWAY = 75
"""The exit code of a child that could not reach its database."""
MOST_PROCESSES = 1000
_SILENT = 5.0
"""Seconds of silence after which a child counts as making no progress."""


@dataclass(frozen=True, slots=True)
class SupervisorOptions:
    """The number of children, and when to replace or kill one. Times are in seconds, and memory is in bytes."""

    processes: int = 1
    max_jobs: int = 0
    max_memory: int = 0
    """The memory usage above which a child is replaced. 0 means no limit, here and for `max_jobs`."""
    kill_after: float = 10.0
    """If a job cannot be interrupted, its process is killed this many seconds after the job's timeout."""
    hung_after: float = 300.0
    """Seconds without any progress after which a process is killed; 0 means never."""
    reload: bool = False
    """True to try again if the application cannot be imported, since somebody is editing it."""

    def __post_init__(self) -> None:
        check_integer("--processes", self.processes, least=1, most=MOST_PROCESSES, error=ConfigurationError)
        check_integer("--max-jobs", self.max_jobs, least=0, most=10**9, error=ConfigurationError)
        check_integer("--max-memory", self.max_memory // 2**20, least=0, most=10**9, error=ConfigurationError)
        check_seconds("--kill-after", self.kill_after, least=INSTANT, most=DAY, error=ConfigurationError)
        check_seconds("--hung-after", self.hung_after, most=DAY, error=ConfigurationError)

    @property
    def silent_after(self) -> float:
        """After this many seconds without progress, the jobs that a child has not begun are given back."""
        return min(_SILENT, self.hung_after / 2) if self.hung_after else _SILENT

    def is_spent(self, runs: int, memory: int) -> bool:
        """Return whether a child is to be replaced, given its number of runs and its memory usage."""
        return runs > 0 and (0 < self.max_jobs <= runs or 0 < self.max_memory < memory)


@dataclass(frozen=True, slots=True)
class Setup:
    """What a parent goes by: the command line, and from the first child's first message on, the plan made with that."""

    application: Application
    options: SupervisorOptions
    planned: ChildSpec | None = None

    @property
    def spec(self) -> ChildSpec:
        """The children's spec, once a child has asked for it."""
        assert self.planned is not None, "a child asks for it first"
        return self.planned

    @property
    def grace(self) -> float:
        """How many seconds the jobs have to end when a child is asked to stop."""
        return 0.0 if self.planned is None else self.planned.settings.grace
