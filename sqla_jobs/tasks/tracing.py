"""What is told of each enqueue and of each run, to make spans of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from sqlalchemy.orm import Session

from sqla_jobs.models.columns import JobMixin
from sqla_jobs.rules.outcomes import Outcome
from sqla_jobs.tasks.context import RunContext


class Sending(Protocol):
    """One enqueue, which is told what came of it."""

    def one(self, job: JobMixin, inserted: int) -> None:
        """A job was returned. It may be an earlier one, which has the unique key: then `inserted` is 0."""
        ...

    def many(self, inserted: int) -> None:
        """So many jobs were inserted."""
        ...


class Tracing(Protocol):
    """Makes spans of the enqueues and runs of one `Jobs`."""

    def sending(
        self, session: Session, job: type[JobMixin], task: str, queue: str
    ) -> AbstractContextManager[Sending, None]:
        """Around an enqueue. Headers are asked for inside."""
        ...

    def processing(self, run: RunContext) -> Callable[[Outcome], None]:
        """A run begins in this thread. What is returned is called there with the outcome."""
        ...


class _Untraced:
    def one(self, job: JobMixin, inserted: int) -> None: ...

    def many(self, inserted: int) -> None: ...


UNTRACED: AbstractContextManager[Sending, None] = nullcontext(_Untraced())
"""Around an enqueue of which nobody wants a span."""
