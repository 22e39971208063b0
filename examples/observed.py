"""Observing jobs: `python -m examples.observed` prints the trace of a request as a tree, and the metrics of a scrape.

It needs OpenTelemetry's SDK and the Prometheus client (`pip install opentelemetry-sdk prometheus-client`). A real
service would export its spans to a collector, and Prometheus would scrape its metrics.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, Tracer
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tenacity import Retrying, wait_fixed

from examples.database import demo_database
from sqla_jobs import Jobs, RunContext
from sqla_jobs.opentelemetry import instrument
from sqla_jobs.prometheus import collector


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")


jobs = Jobs(Base)


@jobs.task(queue="mail")
def send_mail(to: str) -> None: ...


@jobs.task(retry=Retrying(wait=wait_fixed(0)))
def charge(run: RunContext, order: int) -> str:
    if run.attempt == 1:
        raise ConnectionError("the bank's line is busy")
    return "charged"


@jobs.task
def settle(session: Session, order: Order) -> None:
    order.status = "settled"
    charge.enqueue(session, order=order.id)
    send_mail.enqueue_many(session, [{"to": "customer@example.com"}, {"to": "shop@example.com"}])


def traced_request(session: Session, tracer: Tracer) -> None:
    """Place an order in a traced request, and run all jobs that follow from it."""
    with tracer.start_as_current_span("POST /orders"):
        session.add(order := Order())
        settle.enqueue(session, order=order)
        session.commit()
    jobs.worker(["default", "mail"], concurrency=1).drain()


def tree(spans: Sequence[ReadableSpan], above: SpanContext | None = None, depth: int = 0) -> list[str]:
    """Return the spans below `above`, one in each line and indented under its parent."""
    lines: list[str] = []
    for span in sorted(spans, key=lambda one: one.start_time or 0):
        if (span.parent and span.parent.span_id) == (above and above.span_id):
            lines += ["  " * depth + described(span), *tree(spans, span.context, depth + 1)]
    return lines


def described(span: ReadableSpan) -> str:
    """Describe a span: its name, task, number of jobs, attempt, outcome, status and duration."""
    known = {name: str(value) for name, value in (span.attributes or {}).items()}
    facts = [
        known.get("sqla_jobs.task"),
        known.get("messaging.batch.message_count", "") and f"{known['messaging.batch.message_count']} jobs",
        known.get("sqla_jobs.attempt", "") and f"attempt {known['sqla_jobs.attempt']} {known['sqla_jobs.outcome']}",
        span.status.description,
        f"{((span.end_time or 0) - (span.start_time or 0)) / 1e6:.1f} ms",
    ]
    return f"{span.name}: {', '.join(fact for fact in facts if fact)}"


def show_trace(session: Session) -> None:
    """Run a request and print its trace."""
    exported = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exported))
    instrument(jobs, parent=True, tracer_provider=provider)
    traced_request(session, provider.get_tracer("examples"))
    print("\n".join(tree(exported.get_finished_spans())))


def show_scrape(registry: CollectorRegistry) -> None:
    """Print the nonzero metrics of runs, in the format that Prometheus reads."""
    for line in generate_latest(registry).decode().splitlines():
        if (
            line.startswith("sqla_jobs_run")
            and "_bucket" not in line
            and "_created" not in line
            and line[-4:] != " 0.0"
        ):
            print(line)


def main() -> None:
    logging.getLogger("sqla_jobs").addHandler(logging.NullHandler())  # the trace shows the retried attempt anyway
    with demo_database() as url:
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        jobs.bind(engine)
        registry = CollectorRegistry()
        registry.register(collector(jobs))  # before the worker starts: counting begins here
        with Session(engine) as session:
            show_trace(session)
        print()
        show_scrape(registry)
        engine.dispose()


if __name__ == "__main__":
    main()
