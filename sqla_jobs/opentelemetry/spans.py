"""Spans of enqueues and runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import cast

import sqlalchemy as sa
from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.baggage import get_all, set_baggage
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, TracerProvider, set_span_in_context
from sqlalchemy.orm import Session

from sqla_jobs.database.commits import on_commit
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.opentelemetry.metrics import NAME, SCHEMA, Metrics, attributes_of
from sqla_jobs.queries.processes import code_version
from sqla_jobs.rules.outcomes import Failure, Outcome, type_name
from sqla_jobs.tasks.hooks import LONGEST, RunEvent
from sqla_jobs.tasks.run_context import RunContext

_ERRORS = frozenset({"failed", "retried", "lost"})
_UNCOUNTED = frozenset({"lost", "released"})
"""Outcomes that this process does not count: the rescuer counts `lost`, and a released job did not run."""


class Spans:
    """Creates the spans of one `Jobs` and records its metrics. With `parent`, runs continue the enqueue's trace."""

    def __init__(self, provider: TracerProvider | None, metrics: Metrics, *, parent: bool) -> None:
        self._tracer = trace.get_tracer(NAME, code_version(), provider, SCHEMA)
        self._metrics = metrics
        self._is_parent = parent

    def headers(self) -> dict[str, str]:
        """Return the current context as headers. A value too long for a header, such as large baggage, is left out."""
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        return {name: value for name, value in carrier.items() if len(value) <= LONGEST}

    def sending(self, session: Session, job: type[JobMixin], task: str, queue: str) -> _Sending:
        """Start the PRODUCER span of an enqueue. The enqueue's metrics are recorded after the commit."""
        attributes = attributes_of("send", queue, task)
        span = self._tracer.start_span(f"send {queue}", kind=SpanKind.PRODUCER, attributes=attributes)

        def sent(number: int, seconds: float, one: JobMixin | None) -> None:
            on_commit(session, job, partial(self._sent, number, seconds, attributes, one))

        return _Sending(span, sent)

    def _sent(self, number: int, seconds: float, attributes: Mapping[str, str], one: JobMixin | None) -> None:
        """Record a committed enqueue. A job that was expunged before a flush has no identity and does not count."""
        if one is None or sa.inspect(one, raiseerr=True).has_identity:
            self._metrics.sent(number, seconds, attributes)

    def processing(self, run: RunContext) -> Callable[[Outcome], None]:
        """Start the CONSUMER span of a run and make it current. Return the function that ends it."""
        started = time.perf_counter()
        context, links = self._origin(run.headers)
        span = self._start_span(run, context, links)
        token = contexts.attach(_inside(span, context))

        def ended(outcome: Outcome) -> None:
            contexts.detach(token)
            kind, failure = str(outcome.kind), outcome.failure
            error = failure if kind in _ERRORS else None
            span.set_attribute("sqla_jobs.outcome", kind)
            if error is not None:
                _record_failure(span, error)
            span.end()
            if kind not in _UNCOUNTED:
                self._metrics.processed(run, time.perf_counter() - started, kind, error)

        return ended

    def ended_elsewhere(self, event: RunEvent) -> None:
        """Create a CONSUMER span that ends now, for a run whose own process was killed."""
        if event.name != "lost" and not event.process_killed:
            return
        context, links = self._origin(event.headers)
        now, failure = time.time_ns(), Failure(event.error_type or "Lost", event.error or "")
        error = failure if event.name in _ERRORS else None
        span = self._start_span(event, context, links, now - int(event.seconds * 1e9))
        span.set_attribute("sqla_jobs.outcome", event.name)
        if error is not None:
            _record_failure(span, error)
        span.end(now)
        self._metrics.processed(event, event.seconds, event.name, error)

    def _origin(self, headers: Mapping[str, str]) -> tuple[Context, Sequence[Link]]:
        """Return the context for the span of a run, and its links."""
        context = contexts.get_current()
        if not headers:
            return context, ()
        sent = propagate.extract(dict(headers), Context())
        for name, value in get_all(sent).items():
            context = set_baggage(name, value, context)
        span = trace.get_current_span(sent)
        if not span.get_span_context().is_valid:
            return context, ()
        if self._is_parent:
            return set_span_in_context(span, context), ()
        return context, (Link(span.get_span_context()),)

    def _start_span(
        self, run: RunContext | RunEvent, context: Context, links: Sequence[Link], start_time: int | None = None
    ) -> Span:
        attributes: dict[str, str | int] = {
            **attributes_of("process", run.queue, run.task),
            "messaging.message.id": str(run.job_id),
            "sqla_jobs.attempt": run.attempt,
        }
        return self._tracer.start_span(
            f"process {run.queue}", context, SpanKind.CONSUMER, attributes, links, start_time
        )


class _Sending(AbstractContextManager["_Sending", None]):
    """The span of one enqueue. Jobs that are enqueued inside it get its context."""

    def __init__(self, span: Span, sent: Callable[[int, float, JobMixin | None], None]) -> None:
        self._span = span
        self._sent = sent
        self._inserted = 0
        self._job: JobMixin | None = None
        self._started = time.perf_counter()
        self._token = contexts.attach(_inside(span, contexts.get_current()))

    def __exit__(self, kind: object, error: BaseException | None, at: object) -> None:
        contexts.detach(self._token)
        if error is not None:  # the error's message may show arguments
            self._span.set_attribute("error.type", type_name(type(error)))
            self._span.set_status(StatusCode.ERROR)
        elif self._inserted:
            self._sent(self._inserted, time.perf_counter() - self._started, self._job)
        self._span.end()

    def one(self, job: JobMixin, inserted: int) -> None:
        """Record one job. A pending job has no id yet."""
        self._inserted, self._job = inserted, job
        job_id = cast("int | None", job.id)
        if job_id is not None:
            self._span.set_attribute("messaging.message.id", str(job_id))

    def many(self, inserted: int) -> None:
        """Record a batch of jobs."""
        self._inserted = inserted
        self._span.set_attribute("messaging.batch.message_count", inserted)


def _inside(span: Span, context: Context) -> Context:
    """Return a context whose current span is `span`; or `context` if the span is invalid, as it is without an SDK."""
    return set_span_in_context(span, context) if span.get_span_context().is_valid else context


def _record_failure(span: Span, failure: Failure) -> None:
    """Record the failure like `Span.record_exception`, but without the values of sensitive arguments."""
    span.set_attribute("error.type", failure.type)
    span.set_status(StatusCode.ERROR, f"{failure.type}: {failure.message:.500}")
    exception = {"exception.type": failure.type, "exception.message": failure.message}
    if failure.traceback:
        exception["exception.stacktrace"] = failure.traceback
    span.add_event("exception", exception)
