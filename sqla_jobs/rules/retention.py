"""The retention of ended jobs, lines of the audit and ticks."""

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
"""A timedelta or seconds for each state of ended jobs, "audit" and "ticks"; None to keep them for ever."""

KEPT: Retention = MappingProxyType(
    {
        "succeeded": timedelta(days=7),
        "cancelled": timedelta(days=7),
        "failed": timedelta(days=30),
        "audit": timedelta(days=365),
        "ticks": timedelta(days=30),
    }
)
"""The defaults. Failed jobs are kept longer, since they still need attention."""


def seconds_kept(given: Retention) -> dict[str, float]:
    """Return the seconds for each name in `KEPT`, except names kept for ever.

    A name that is not `given` has its value in `KEPT`.

    Raises `ConfigurationError` for an unknown name or an invalid duration.
    """
    found: dict[str, float] = {}
    for state, kept in {**KEPT, **given}.items():
        if state not in KEPT:
            raise ConfigurationError(f"unknown retention {state!r}; valid names: {', '.join(KEPT)}")
        if kept is None:
            continue
        found[state] = check_seconds(f"retention of {state}", kept, error=ConfigurationError)
    return found
