"""Traces and metrics for OpenTelemetry. Needs its API: `pip install "sqla-jobs[opentelemetry]"`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        f"sqla_jobs.opentelemetry needs opentelemetry-api, which is not installed ({_error}): "
        "pip install 'sqla-jobs[opentelemetry]'",
        name=_error.name,
    ) from None

from sqla_jobs.opentelemetry.metrics import Metrics
from sqla_jobs.opentelemetry.spans import Spans
from sqla_jobs.tasks.hooks import RunEvent

if TYPE_CHECKING:
    from sqla_jobs.jobs import Jobs

__all__ = ["instrument"]


def instrument(
    jobs: Jobs[Any],
    *,
    parent: bool = False,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> None:
    """Create spans and metrics for each enqueue and run of `jobs`, according to the semantic conventions for messaging.

    - `jobs`: the `Jobs`.
    - `parent`: True makes a run's span a child of the span of its enqueue. By default a run's span begins a trace of
      its own, with a link to the span of the enqueue.
    - `tracer_provider`, `meter_provider`: by default the global ones, which may also be set later.

    The global propagator writes the trace context into the jobs' headers and reads it from there. An enqueue's metrics
    are recorded after its commit. Call `instrument` where `jobs` is created, so that workers call it, too. A second
    call replaces the first.
    """
    is_first = jobs._hooks.tracing is None
    jobs._hooks.tracing = Spans(tracer_provider, Metrics(meter_provider), parent=parent)
    if not is_first:
        return

    @jobs.headers
    def present_context() -> dict[str, str]:
        return _spans(jobs).headers()

    @jobs.on("lost", "failed", "retried", "cancelled")
    def ended_elsewhere(event: RunEvent) -> None:
        _spans(jobs).ended_elsewhere(event)


def _spans(jobs: Jobs[Any]) -> Spans:
    """Return the `Spans` from the last call of `instrument`."""
    assert isinstance(jobs._hooks.tracing, Spans), "instrument() alone sets it"
    return jobs._hooks.tracing
