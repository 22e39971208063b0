"""What is exported of `tests.traced_shop`, in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sqla_jobs import Jobs
from sqla_jobs.opentelemetry import instrument
from tests import traced_shop


class Exported:
    """The spans and metrics of one test."""

    def __init__(self) -> None:
        self._spans, self._metrics = InMemorySpanExporter(), InMemoryMetricReader()
        self.traces = TracerProvider()
        self.traces.add_span_processor(SimpleSpanProcessor(self._spans))
        self.meters = MeterProvider([self._metrics])
        self.instrument()

    def instrument(self, *, parent: bool = False) -> None:
        instrument(traced_shop.jobs, parent=parent, tracer_provider=self.traces, meter_provider=self.meters)

    def spans(self, name: str) -> list[ReadableSpan]:
        """Those of this name that have ended, in this order."""
        return [span for span in self._spans.get_finished_spans() if span.name == name]

    def span(self, name: str) -> ReadableSpan:
        (span,) = self.spans(name)
        return span

    def metric(self, name: str) -> list[tuple[dict[str, Any], float]]:
        """The attributes of each point of a metric, and its value; of a histogram how many it has counted."""
        data = self._metrics.get_metrics_data()
        return [
            (dict(point.attributes or {}), point.value if isinstance(point, NumberDataPoint) else point.count)
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def total(self, name: str) -> float:
        return sum(value for _, value in self.metric(name))


@pytest.fixture
def application() -> Jobs[Any]:
    return traced_shop.jobs


@pytest.fixture
def exported() -> Iterator[Exported]:
    exported = Exported()
    yield exported
    exported.traces.shutdown()
    exported.meters.shutdown()
