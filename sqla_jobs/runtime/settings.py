"""The settings of a worker and of its lease, checked on creation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.rules.checks import DAY, INSTANT, check_integer, check_queue, check_seconds
from sqla_jobs.rules.retention import Retention, seconds_kept

_MOST = 5000
"""The most jobs that a worker runs at once, over all its queues."""


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """The lease: a process beats every `heartbeat` seconds, and is taken for dead after `lease` seconds.

    Raises `ConfigurationError`.
    """

    heartbeat: float
    """The time between two heartbeats."""
    lease: float
    """The time without a heartbeat after which the process is taken for dead."""

    def __post_init__(self) -> None:
        _check_seconds(heartbeat=self.heartbeat, lease=self.lease)
        if self.lease < 3 * self.heartbeat:
            raise ConfigurationError(
                f"lease must be at least three times heartbeat, got lease={self.lease:g} and "
                f"heartbeat={self.heartbeat:g}: a worker that misses one heartbeat would lose its jobs"
            )

    @property
    def patience(self) -> float:
        """Seconds that the process's own connections wait for a silent server."""
        return max(1.0, self.lease / 3)

    @property
    def longest_wait(self) -> float:
        """The most seconds between two tries to beat. After an outage, all live processes then beat before one of them
        may take another for dead."""
        return min(5.0, self.heartbeat)


@dataclass(frozen=True, slots=True)
class Settings(LeaseSettings):
    """The settings of a worker. All times are seconds."""

    queues: dict[str, int]
    """The number of jobs of each queue that run at once."""
    poll: float
    """The longest time between two looks for jobs that no notification announced."""
    grace: float
    """The time that running jobs have to end when the worker stops."""
    slow_after: float
    """The time after which the stack of a run is logged."""
    timeout: float | None
    """The timeout of tasks without one of their own."""
    kill_after: float
    """Seconds after a cancellation until a run that has not ended is abandoned."""
    retention: dict[str, float] | None
    """Seconds after which rows are deleted: jobs by final state, "audit" and "ticks". Rows without an entry are kept
    for ever. `None`: another process of the same worker prunes."""

    @property
    def jobs_at_once(self) -> int:
        """The number of jobs that run at once, over all queues."""
        return sum(self.queues.values())

    def jobs_of(self, queues: Iterable[str]) -> int:
        """Return how many jobs of these queues may run at once. Queues that the worker does not serve count 0."""
        return sum(self.queues.get(queue, 0) for queue in queues)

    @classmethod
    def checked(
        cls,
        queues: Mapping[str, int] | Iterable[str],
        *,
        concurrency: int,
        heartbeat: float,
        lease: float,
        poll: float,
        grace: float,
        slow_after: float,
        timeout: float | timedelta | None,
        kill_after: float,
        retention: Retention,
    ) -> Settings:
        """Return the settings. Raises a `ConfigurationError` that names the invalid one."""
        if isinstance(queues, str):
            raise ConfigurationError(
                f"queues must be a list of names or a mapping of names to integers, got {queues!r}"
            )
        slots = dict(queues) if isinstance(queues, Mapping) else dict.fromkeys(queues, concurrency)
        if not slots:
            raise ConfigurationError("queues is empty: name at least one, such as queues=['default']")
        for name, number in slots.items():
            check_queue(name, error=ConfigurationError)
            what = f"concurrency of queue {name!r}" if isinstance(queues, Mapping) else "concurrency"
            check_integer(what, number, least=1, most=_MOST, error=ConfigurationError)
        if (number := sum(slots.values())) > _MOST:
            raise ConfigurationError(
                f"the queues run {number:,} jobs at once together, and a worker runs at most {_MOST:,}: lower them, or "
                "start more workers"
            )
        _check_seconds(poll=poll, slow_after=slow_after)
        check_seconds("grace", grace, most=7 * DAY, error=ConfigurationError)
        if timeout is not None:
            timeout = check_seconds("timeout", timeout, least=INSTANT, error=ConfigurationError)
        kill_after = check_seconds("kill_after", kill_after, least=INSTANT, most=DAY, error=ConfigurationError)
        kept = seconds_kept(retention)
        return cls(heartbeat, lease, slots, poll, grace, slow_after, timeout, kill_after, kept)


def _check_seconds(**options: float) -> None:
    for option, value in options.items():
        check_seconds(option, value, least=INSTANT, most=DAY, error=ConfigurationError)
