"""The context that a job carries in its headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from opentelemetry import trace
from opentelemetry.baggage import get_all
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import Link, Span


class Carried(NamedTuple):
    """What the headers of a job say of its enqueue."""

    span: Span
    """In which it was."""
    links: Sequence[Link]
    """To that span; none if the headers name no span."""
    baggage: Mapping[str, object]


@lru_cache(maxsize=1024)
def carried(propagator: TextMapPropagator, headers: frozenset[tuple[str, str]]) -> Carried:
    """The many jobs of a bulk have the same headers."""
    context = propagator.extract(dict(headers), Context())
    span = trace.get_current_span(context)
    found = span.get_span_context()
    return Carried(span, (Link(found),) if found.is_valid else (), get_all(context))
