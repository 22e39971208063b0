"""Tasks of which spans are made, for tests. As a program of its own it exports to OTEL_EXPORTER_OTLP_ENDPOINT."""

from __future__ import annotations

import os
import time

from opentelemetry import baggage, trace
from sqlalchemy.orm import DeclarativeBase, Session
from tenacity import Retrying, wait_fixed

from sqla_jobs import Cancel, Jobs, RunContext, Snooze
from sqla_jobs.opentelemetry import instrument


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)
FAST = Retrying(wait=wait_fixed(0))


@jobs.task
def looks() -> dict[str, str]:
    """What the code of a task sees of its span."""
    here = trace.get_current_span().get_span_context()
    user = str(baggage.get_baggage("user"))
    return {"trace": trace.format_trace_id(here.trace_id), "span": trace.format_span_id(here.span_id), "user": user}


@jobs.task(queue="mail")
def mails(to: str) -> None: ...


@jobs.task
def orders(session: Session, to: str) -> None:
    mails.enqueue(session, to=to)


@jobs.task(max_attempts=2, retry=FAST, sensitive=["password"])
def breaks(password: str) -> None:
    raise ValueError(f"no entry with {password}")


@jobs.task
def goes_on(how: str) -> None:
    raise Snooze(60) if how == "snooze" else Cancel("enough")


@jobs.task(max_attempts=1)
def dies(run: RunContext, seconds: float) -> None:
    """Long enough for a test to kill the process."""
    time.sleep(seconds)


if "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    traces = TracerProvider()
    traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=200))
    metrics = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter(), 60_000)])
    instrument(jobs, tracer_provider=traces, meter_provider=metrics)
