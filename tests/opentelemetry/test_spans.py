"""The spans of enqueues and runs."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import text
from sqlalchemy.orm import Session

from sqla_jobs import ArgumentsError
from sqla_jobs.opentelemetry import instrument
from sqla_jobs.rules.redaction import WITHHELD
from sqla_jobs.testing import drain
from tests import traced_shop as shop
from tests.helpers import wait_until
from tests.opentelemetry.conftest import Exported
from tests.traced_shop import jobs


def ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def links(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


def test_an_enqueue_is_a_producer_span_whose_context_the_job_carries(session: Session, exported: Exported) -> None:
    with exported.traces.get_tracer("test").start_as_current_span("request"):
        job = shop.mails.enqueue(session, to="ada")
    send, request = exported.span("send mail"), exported.span("request")
    assert send.kind == SpanKind.PRODUCER
    assert send.parent == request.context
    assert send.attributes == {
        "messaging.system": "sqla_jobs",
        "messaging.operation.type": "send",
        "messaging.operation.name": "send",
        "messaging.destination.name": "mail",
        "sqla_jobs.task": "mails",
    }
    trace_id, span_id = ids(send)
    assert send.context is not None
    assert job.headers == {"traceparent": f"00-{trace_id:032x}-{span_id:016x}-{send.context.trace_flags:02x}"}


def test_a_run_is_a_consumer_span_of_its_own_trace_linked_to_the_enqueue(session: Session, exported: Exported) -> None:
    job = shop.mails.enqueue(session, to="ada")
    drain(session, jobs)
    send, process = exported.span("send mail"), exported.span("process mail")
    assert process.kind == SpanKind.CONSUMER
    assert process.parent is None
    assert ids(process)[0] != ids(send)[0]
    assert links(process) == [ids(send)]
    assert process.status.status_code == StatusCode.UNSET
    assert process.attributes == {
        "messaging.system": "sqla_jobs",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": "mail",
        "messaging.message.id": str(job.id),
        "sqla_jobs.task": "mails",
        "sqla_jobs.attempt": 1,
        "sqla_jobs.outcome": "succeeded",
    }


def test_with_parent_a_run_continues_the_trace_of_the_enqueue(session: Session, exported: Exported) -> None:
    exported.instrument(parent=True)
    shop.mails.enqueue(session, to="ada")
    drain(session, jobs)
    send, process = exported.span("send mail"), exported.span("process mail")
    assert process.parent is not None
    assert (process.parent.trace_id, process.parent.span_id) == ids(send)
    assert process.links == ()


def test_a_bulk_is_one_span_to_which_all_its_runs_are_linked(session: Session, exported: Exported) -> None:
    shop.mails.options(queue="bulk").enqueue_many(session, [{"to": "ada"}, {"to": "bob"}, {"to": "eve"}])
    drain(session, jobs)
    send = exported.span("send bulk")
    assert send.attributes is not None
    assert send.attributes["messaging.batch.message_count"] == 3
    assert [links(span) for span in exported.spans("process bulk")] == [[ids(send)]] * 3


def test_the_code_of_a_task_runs_in_the_span(session: Session, exported: Exported) -> None:
    job = shop.looks.enqueue(session)
    drain(session, jobs)
    trace_id, span_id = ids(exported.span("process default"))
    assert job.runs[0].result == {"trace": f"{trace_id:032x}", "span": f"{span_id:016x}", "user": "None"}
    assert not trace.get_current_span().get_span_context().is_valid


def test_what_a_run_enqueues_is_part_of_its_trace(session: Session, exported: Exported) -> None:
    shop.orders.enqueue(session, to="ada")
    drain(session, jobs)
    assert exported.span("send mail").parent == exported.span("process default").context
    assert links(exported.span("process mail")) == [ids(exported.span("send mail"))]


def looks_for(session: Session, user: str) -> Any:
    """A job that was enqueued with such baggage."""
    token = context.attach(baggage.set_baggage("user", user))
    try:
        return shop.looks.enqueue(session)
    finally:
        context.detach(token)


@pytest.mark.parametrize("parent", [False, True])
def test_baggage_reaches_the_run(session: Session, exported: Exported, parent: bool) -> None:
    exported.instrument(parent=parent)
    job = looks_for(session, "ada")
    drain(session, jobs)
    assert job.runs[0].result["user"] == "ada"
    assert looks_for(session, "a" * 3000).headers.keys() == {"traceparent"}, "no header can hold it"


def test_without_a_provider_the_context_goes_through(session: Session) -> None:
    instrument(jobs, tracer_provider=trace.NoOpTracerProvider())
    remote = trace.NonRecordingSpan(trace.SpanContext(7, 9, is_remote=True))
    with trace.use_span(remote):
        job = shop.mails.enqueue(session, to="ada")
    assert job.headers == {"traceparent": f"00-{7:032x}-{9:016x}-00"}
    drain(session, jobs)
    assert job.state == "succeeded"


@pytest.mark.parametrize(("how", "outcome"), [("snooze", "snoozed"), ("cancel", "cancelled")])
def test_a_snooze_and_a_cancel_are_no_errors(session: Session, exported: Exported, how: str, outcome: str) -> None:
    shop.goes_on.enqueue(session, how=how)
    drain(session, jobs)
    process = exported.span("process default")
    assert process.attributes is not None
    assert process.attributes["sqla_jobs.outcome"] == outcome
    assert process.status.status_code == StatusCode.UNSET
    assert process.events == ()


def test_a_failed_attempt_is_an_error_that_shows_no_sensitive_argument(session: Session, exported: Exported) -> None:
    shop.breaks.enqueue(session, password="swordfish")
    drain(session, jobs, errors="record")
    spans = exported.spans("process default")
    found: list[Any] = [
        (span.attributes["sqla_jobs.attempt"], span.attributes["sqla_jobs.outcome"], span.attributes["error.type"])
        for span in spans
        if span.attributes is not None
    ]
    assert found == [(1, "retried", "ValueError"), (2, "failed", "ValueError")]
    for span in spans:
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, f"ValueError: {WITHHELD}")
        (event,) = span.events
        assert event.attributes is not None
        assert event.attributes["exception.type"] == "ValueError"
        assert "in breaks" in str(event.attributes["exception.stacktrace"])
        assert "swordfish" not in span.to_json()


def test_an_enqueue_that_is_refused_is_an_error(session: Session, exported: Exported) -> None:
    with pytest.raises(ArgumentsError):
        shop.mails.enqueue_many(session, [{"to": "ada"}, {"to": 7}])
    send = exported.span("send mail")
    assert send.status.status_code == StatusCode.ERROR
    assert send.attributes is not None
    assert send.attributes["error.type"] == "sqla_jobs.errors.ArgumentsError"
    assert (send.status.description, send.events) == (None, ())


def untold(session: Session) -> int:
    session.rollback()
    return session.scalar(text("SELECT count(*) FROM sqla_runs WHERE untold_at IS NOT NULL")) or 0


def test_a_lost_run_is_an_error_span_of_the_process_that_is_told(session: Session, exported: Exported) -> None:
    job = shop.dies.enqueue(session, seconds=60)
    session.flush()
    session.execute(
        text(
            "INSERT INTO sqla_runs (job_id, attempt, outcome, error_type, error, started_at, finished_at, untold_at) "
            "VALUES (:id, 1, 'lost', 'Lost', 'its process stopped', now() - interval '9 s', now(), now())"
        ),
        {"id": job.id},
    )
    session.execute(text("UPDATE sqla_jobs SET state = 'failed', finished_at = now(), attempt = 1"))
    session.commit()
    exported.instrument()  # replaces the first call
    with jobs.worker(["other"], clock=False):
        wait_until(lambda: untold(session) == 0)
    process = exported.span("process default")
    assert links(process) == [ids(exported.span("send default"))]
    assert (process.status.status_code, process.status.description) == (StatusCode.ERROR, "Lost: its process stopped")
    assert process.attributes is not None
    assert (process.attributes["sqla_jobs.outcome"], process.attributes["error.type"]) == ("lost", "Lost")
    assert exported.total("messaging.client.consumed.messages") == 1
    assert (process.end_time or 0) - (process.start_time or 0) == pytest.approx(9e9, rel=0.01)
