"""The protocols through which enqueues and runs report to a tracer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from sqlalchemy.orm import Session

from sqla_jobs.models.columns import JobMixin
from sqla_jobs.rules.outcomes import Outcome
from sqla_jobs.tasks.run_context import RunContext


class Sending(Protocol):
    """The span of one enqueue, which records the result."""

    def one(self, job: JobMixin, inserted: int) -> None:
        """Record the returned job. `inserted` is 1, or 0 for an earlier job with the same unique key."""
        ...

    def many(self, inserted: int) -> None:
        """Record the number of inserted jobs."""
        ...


class Tracing(Protocol):
    """Makes spans for the enqueues and runs of one `Jobs`."""

    def sending(
        self, session: Session, job: type[JobMixin], task: str, queue: str
    ) -> AbstractContextManager[Sending, None]:
        """Return the context manager around an enqueue. The job's headers are collected inside it."""
        ...

    def processing(self, run: RunContext) -> Callable[[Outcome], None]:
        """Start the span of a run in this thread. Return a function to call in this thread with the run's outcome."""
        ...


class _Untraced:
    def one(self, job: JobMixin, inserted: int) -> None: ...

    def many(self, inserted: int) -> None: ...


UNTRACED: AbstractContextManager[Sending, None] = nullcontext(_Untraced())
"""The context manager around an enqueue if there is no tracer."""
