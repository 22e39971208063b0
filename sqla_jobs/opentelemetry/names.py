"""Names from the semantic conventions for messaging."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

NAME = "sqla_jobs"
SCHEMA = "https://opentelemetry.io/schemas/1.36.0"
"""The version of the semantic conventions whose names are used here."""


@lru_cache(maxsize=1024)
def attributes_of(operation: str, queue: str, task: str, outcome: str = "", error: str = "") -> Mapping[str, str]:
    """Return the attributes of spans and metrics."""
    attributes = {
        "messaging.system": NAME,
        "messaging.operation.type": operation,
        "messaging.operation.name": operation,
        "messaging.destination.name": queue,
        "sqla_jobs.task": task,
    }
    if outcome:
        attributes["sqla_jobs.outcome"] = outcome
    if error:
        attributes["error.type"] = error
    return attributes
