"""The settings for a worker and its lease, checked on creation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import Any, TypedDict

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.rules.retention import KEPT, Retention, seconds_kept
from sqla_jobs.rules.value_checks import DAY, INSTANT, check_integer, check_queue, check_seconds

_MOST = 5000
"""The maximum number of jobs that a worker runs simultaneously, over all its queues."""


class WorkerOptions(TypedDict, total=False):
    """The options of `jobs.worker`. All times are in seconds."""

    concurrency: int
    """The number of simultaneous jobs for each queue that is given by its name alone: 8."""
    heartbeat: float
    """The time between two heartbeats: 5."""
    lease: float
    """The time without a heartbeat after which the worker is considered dead, at least three times `heartbeat`: 30."""
    poll: float
    """The maximum time between two searches for jobs that no notification has announced: 1."""
    grace: float
    """The time that running jobs have to end when the worker is stopped: 30."""
    slow_after: float
    """The time after which a run's stack is logged: 300."""
    timeout: float | timedelta | None
    """The timeout, as a timedelta or seconds, for tasks without one of their own. By default there is none."""
    kill_after: float
    """The time that a coroutine has to end after its cancellation. Then it is abandoned: 10."""
    retention: Retention
    """The time after which rows are deleted, such as `{"succeeded": timedelta(days=1), "failed": None}`.

    None keeps rows. By default 7 days for succeeded and cancelled jobs, 30 for failed ones and for "ticks", and 365 for
    "audit"."""


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """The times for heartbeats and leases.

    A process sends a heartbeat every `heartbeat` seconds. A process without a heartbeat for `lease` seconds is
    considered dead.

    Raises `ConfigurationError` if a time is invalid.
    """

    heartbeat: float
    """The time between two heartbeats."""
    lease: float
    """The time without a heartbeat after which the process is considered dead."""

    def __post_init__(self) -> None:
        _check_seconds(heartbeat=self.heartbeat, lease=self.lease)
        if self.lease < 3 * self.heartbeat:
            raise ConfigurationError(
                f"lease must be at least three times heartbeat, got lease={self.lease:g} and "
                f"heartbeat={self.heartbeat:g}: a worker that misses one heartbeat would lose its jobs"
            )

    @property
    def patience(self) -> float:
        """How many seconds the process's own connections wait for a silent server."""
        return max(1.0, self.lease / 3)

    @property
    def longest_wait(self) -> float:
        """The maximum number of seconds between two tries to send a heartbeat.

        After an outage, each live process thus sends a heartbeat before another process may consider it dead.
        """
        return min(5.0, self.heartbeat)


@dataclass(frozen=True, slots=True)
class Settings(LeaseSettings):
    """The settings for a worker. All times are in seconds."""

    queues: dict[str, int]
    """For each queue, the number of jobs that run simultaneously."""
    poll: float
    """The approximate time between two looks for jobs that no notification has announced."""
    grace: float
    """The time allowed for running jobs to end when the worker stops."""
    slow_after: float
    """The time after which a run's stack is logged."""
    timeout: float | None
    """The timeout for tasks that declare none."""
    kill_after: float
    """A coroutine is abandoned if it is still running this many seconds after its cancellation."""
    retention: dict[str, float] | None
    """The number of seconds after which rows are deleted, for each kind of row.

    The kinds are the final states of jobs, "audit" and "ticks". Rows of a kind that has no entry are kept forever.
    `None` if another process of the same worker prunes.
    """

    def jobs_of(self, queues: Iterable[str]) -> int:
        """Return how many jobs from these queues may run simultaneously.

        Queues that the worker does not serve count as 0.
        """
        return sum(self.queues.get(queue, 0) for queue in queues)

    @classmethod
    def checked(
        cls,
        queues: Mapping[str, int] | Iterable[str],
        *,
        concurrency: int = 8,
        heartbeat: float = 5.0,
        lease: float = 30.0,
        poll: float = 1.0,
        grace: float = 30.0,
        slow_after: float = 300.0,
        timeout: float | timedelta | None = None,
        kill_after: float = 10.0,
        retention: Retention = KEPT,
    ) -> Settings:
        """Return the settings. Raises a `ConfigurationError` that names the invalid setting."""
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


DEFAULTS: dict[str, Any] = {name: one.default for name, one in signature(Settings.checked).parameters.items()}
"""The defaults of a worker's settings."""
