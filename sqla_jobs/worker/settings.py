"""How a worker works, checked where it enters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqla_jobs.enqueue import check_common
from sqla_jobs.errors import ArgumentsError, ConfigurationError


@dataclass(frozen=True, slots=True)
class Settings:
    """All times are seconds; `queues` gives each queue's own number of jobs to run at once."""

    queues: dict[str, int]
    heartbeat: float
    lease: float
    poll: float
    grace: float
    slow: float

    @property
    def patience(self) -> float:
        """How long the worker's own connections wait for a server that is silent."""
        return max(1.0, self.lease / 3)

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
        slow: float,
    ) -> Settings:
        """The settings, or a `ConfigurationError` that names the one that cannot be."""
        if isinstance(queues, str):
            raise ConfigurationError(f"queues={queues!r}: a list of names, or a mapping of names to numbers")
        lanes = dict(queues) if isinstance(queues, Mapping) else dict.fromkeys(queues, concurrency)
        if not lanes:
            raise ConfigurationError("queues is empty: name at least one, such as queues=['default']")
        for name, number in lanes.items():
            try:
                check_common({"queue": name})
            except ArgumentsError as error:
                raise ConfigurationError(str(error)) from None
            if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 1000:
                raise ConfigurationError(f"queue {name!r}: {number!r} jobs at once; a whole number from 1 to 1000")
        for option, value in {"heartbeat": heartbeat, "lease": lease, "poll": poll, "slow": slow}.items():
            if not 0 < value < 86400:
                raise ConfigurationError(f"{option}={value!r}: a number of seconds above 0, below a day")
        if not 0 <= grace < 7 * 86400:
            raise ConfigurationError(f"grace={grace!r}: a number of seconds from 0, below a week")
        if lease < 3 * heartbeat:
            raise ConfigurationError(
                f"lease={lease:g} with heartbeat={heartbeat:g}: a worker that misses one beat would lose its jobs; "
                "make the lease at least three times the heartbeat"
            )
        return cls(lanes, heartbeat, lease, poll, grace, slow)
