"""How long jobs that ended, and the lines of the audit, are kept."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Literal, TypeAlias

from sqla_jobs.errors import ConfigurationError

AUDIT = "audit"
Kept: TypeAlias = Literal["succeeded", "failed", "cancelled", "audit"]
Retention: TypeAlias = Mapping[Kept, "timedelta | float | None"]
"""By the state in which a job ended, and for the audit: a timedelta or seconds, and None to keep it for ever."""

KEPT: Retention = MappingProxyType(
    {
        "succeeded": timedelta(days=7),
        "cancelled": timedelta(days=7),
        "failed": timedelta(days=30),
        "audit": timedelta(days=365),
    }
)
"""Where nothing else is said. Failed jobs are somebody's work still to be done."""


def seconds_kept(given: Retention) -> dict[str, float]:
    """Seconds by state, and for the audit, without those kept for ever; what is not `given` is as in `KEPT`.

    Raises `ConfigurationError` for another name, and for what is no length of time.
    """
    found: dict[str, float] = {}
    for state, kept in {**KEPT, **given}.items():
        if state not in KEPT:
            raise ConfigurationError(f"unknown retention {state!r}; valid names: {', '.join(KEPT)}")
        if kept is None:
            continue
        found[state] = seconds_of(kept, f"retention of {state}")
    return found


def seconds_of(length: timedelta | float, what: str) -> float:
    """A length of time as seconds. Raises `ConfigurationError` where it is none, or above 100 years."""
    seconds = length.total_seconds() if isinstance(length, timedelta) else length
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 100 * 366 * 86400:
        raise ConfigurationError(
            f"{what} must be a timedelta or a number of seconds, from 0 to 100 years, got {length!r}"
        )
    return float(seconds)
