"""How long jobs that ended, the lines of the audit, and what became of ticks are kept."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Literal, TypeAlias

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.rules.checks import check_seconds

AUDIT, TICKS = "audit", "ticks"
Kept: TypeAlias = Literal["succeeded", "failed", "cancelled", "audit", "ticks"]
Retention: TypeAlias = Mapping[Kept, "timedelta | float | None"]
"""By the state in which a job ended, "audit" and "ticks": a timedelta or seconds, and None to keep it for ever."""

KEPT: Retention = MappingProxyType(
    {
        "succeeded": timedelta(days=7),
        "cancelled": timedelta(days=7),
        "failed": timedelta(days=30),
        "audit": timedelta(days=365),
        "ticks": timedelta(days=30),
    }
)
"""Where nothing else is said. Failed jobs are somebody's work still to be done."""


def seconds_kept(given: Retention) -> dict[str, float]:
    """Seconds by state, and for the audit and ticks, without those kept for ever; what is not `given` is as in `KEPT`.

    Raises `ConfigurationError` for another name, and for what is no length of time.
    """
    found: dict[str, float] = {}
    for state, kept in {**KEPT, **given}.items():
        if state not in KEPT:
            raise ConfigurationError(f"unknown retention {state!r}; valid names: {', '.join(KEPT)}")
        if kept is None:
            continue
        found[state] = check_seconds(f"retention of {state}", kept, error=ConfigurationError)
    return found
