"""What the database knows of an application's jobs, in numbers: read in one process, and told by another."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """One queue. `queued` and `scheduled` are counted up to a bound."""

    name: str
    queued: int
    scheduled: int
    running: int
    claimed: int
    oldest_wait: float
    """Seconds that the job which was queued first has been due; 0 if none waits."""
    is_paused: bool


@dataclass(frozen=True, slots=True)
class LimitFigures:
    """One limit in effect that is not of one key."""

    name: str
    kind: str
    is_of_each_key: bool
    """Whether `most` goes for each key by itself."""
    most: int
    used: int | None
    """The jobs that run behind it, or the starts in its time; `None`: not known."""
    waiting: int


@dataclass(frozen=True, slots=True)
class Figures:
    """All of it, at one moment."""

    queues: list[QueueFigures]
    jobs: dict[tuple[str, str], int]
    """By state and task, up to a bound: of those that are queued or scheduled, the next ones."""
    limits: list[LimitFigures]
    alive: dict[str, int]
    """Processes that live, by kind: workers and clocks."""
    dead: dict[str, int]
    """Processes whose lease has run out, and whose rows are still there, by kind."""
    oldest_heartbeat: dict[str, float]
    """Seconds since the oldest of the last heartbeats of those that live, by kind."""
