"""Context managers around a run. An error when they exit does not change the outcome."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Any

from sqla_jobs.execution.attempt import Attempt
from sqla_jobs.rules.outcomes import Failure, Outcome
from sqla_jobs.tasks.context import RunContext
from sqla_jobs.tasks.hooks import Middleware, surroundings
from sqla_jobs.tasks.tracing import Tracing

log: logging.Logger = logging.getLogger("sqla_jobs.run")


class Surrounded(AbstractContextManager[None]):
    """Wraps `surroundings` so that its exit cannot change the outcome of the job.

    An exception that it raises on exit is only logged. It cannot suppress the job's own exception.
    """

    def __init__(self, surroundings: AbstractContextManager[Any], attempt: Attempt) -> None:
        self._surroundings = surroundings
        self._attempt = attempt

    def __enter__(self) -> None:
        self._surroundings.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            self._surroundings.__exit__(kind, raised, at)
        except BaseException as error:  # noqa: BLE001
            if error is not raised:
                log.error(  # noqa: TRY400 - its own traceback may show secrets
                    "%s: its context or middleware did not end well\n%s",
                    self._attempt,
                    Failure.of(error, secrets=self._attempt.secrets).traceback,
                )


@contextmanager
def within(middleware: Iterable[Middleware], run: RunContext, attempt: Attempt) -> Generator[None]:
    """Enter all of `middleware`; the first is the outermost."""
    with ExitStack() as entered:
        for one in middleware:
            entered.enter_context(Surrounded(surroundings(one, run), attempt))
        yield


def begin_span(tracing: Tracing, run: RunContext) -> Callable[[Outcome], None]:
    """Begin a span for the run, and return the function that ends it. Errors of tracing are only logged."""
    try:
        end = tracing.processing(run)
    except Exception:
        log.exception("job %s %s: its run has no span", run.job_id, run.task)
        return _no_span

    def contained(outcome: Outcome) -> None:
        try:
            end(outcome)
        except Exception:
            log.exception("job %s %s: the span of its run did not end well", run.job_id, run.task)

    return contained


def _no_span(outcome: Outcome) -> None: ...
