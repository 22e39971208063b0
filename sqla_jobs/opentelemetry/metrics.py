"""Counters and durations of enqueues and attempts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from opentelemetry.metrics import MeterProvider, get_meter

from sqla_jobs.queries.processes import code_version
from sqla_jobs.rules.outcomes import Failure
from sqla_jobs.tasks.hooks import RunEvent
from sqla_jobs.tasks.run_context import RunContext

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


_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""Bucket boundaries in seconds, from the semantic conventions."""


class Metrics:
    """Counters and durations, named according to the semantic conventions."""

    def __init__(self, provider: MeterProvider | None) -> None:
        meter = get_meter(NAME, code_version(), provider, SCHEMA)
        self._sent = meter.create_counter(
            "messaging.client.sent.messages", "{message}", "Jobs whose enqueue was committed."
        )
        self._send_duration = meter.create_histogram(
            "messaging.client.operation.duration",
            "s",
            "Duration of an enqueue, without its commit.",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self._consumed = meter.create_counter("messaging.client.consumed.messages", "{message}", "Attempts at jobs.")
        self._process_duration = meter.create_histogram(
            "messaging.process.duration",
            "s",
            "Duration of an attempt at a job.",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )

    def sent(self, number: int, seconds: float, attributes: Mapping[str, str]) -> None:
        """Record the committed enqueue of `number` jobs."""
        self._sent.add(number, attributes)
        self._send_duration.record(seconds, attributes)

    def processed(self, run: RunContext | RunEvent, seconds: float, outcome: str, error: Failure | None) -> None:
        """Record the end of an attempt."""
        attributes = attributes_of("process", run.queue, run.task, outcome, error.type if error else "")
        self._consumed.add(1, attributes)
        self._process_duration.record(seconds, attributes)
