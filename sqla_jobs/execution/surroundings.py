"""Context managers around a run. An error on exit does not change the run's outcome."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Generator, Iterable
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    contextmanager,
)
from types import TracebackType
from typing import Any

from sqla_jobs.execution.held_job import Attempt
from sqla_jobs.rules.outcomes import Failure, Outcome
from sqla_jobs.tasks.hooks import Middleware, awaited_manager, is_asynchronous, surroundings
from sqla_jobs.tasks.run_context import RunContext
from sqla_jobs.tasks.tracing import Tracing

log: logging.Logger = logging.getLogger("sqla_jobs.run")


class Surrounded(AbstractContextManager[None]):
    """Wraps `surroundings` so that its exit cannot change the job's outcome.

    An exception that `surroundings` raises on exit is only logged. `surroundings` cannot suppress the job's own
    exception.
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
            _log_unless(raised, error, self._attempt)


class _AwaitedSurrounded(AbstractAsyncContextManager[None]):
    """Like `Surrounded`, for asynchronous middleware. Only a cancellation of the run propagates from its exit."""

    def __init__(self, surroundings: AbstractAsyncContextManager[Any], attempt: Attempt) -> None:
        self._surroundings = surroundings
        self._attempt = attempt

    async def __aenter__(self) -> None:
        await self._surroundings.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            await self._surroundings.__aexit__(kind, raised, at)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001
            _log_unless(raised, error, self._attempt)


def _log_unless(raised: BaseException | None, error: BaseException, attempt: Attempt) -> None:
    if error is not raised:
        _log(error, "its context or middleware failed on exit", attempt)


def log_after_commit(error: BaseException, attempt: Attempt, what: str = "it has succeeded") -> None:
    """Log an error that was raised after an attempt's transaction had committed. `what` describes what was stored."""
    _log(error, f"{what}, but its session or a listener raised after the commit", attempt)


def _log(error: BaseException, what: str, attempt: Attempt) -> None:
    shown = Failure.of(error, secrets=attempt.secrets)  # the error's own traceback may show secrets
    log.error("%s: %s\n%s", attempt, what, shown.traceback)


@contextmanager
def within(middleware: Iterable[Middleware], run: RunContext, attempt: Attempt) -> Generator[None]:
    """Enter all synchronous middleware in `middleware`; the first is the outermost."""
    with ExitStack() as entered:
        for one in middleware:
            if not is_asynchronous(one):
                entered.enter_context(Surrounded(surroundings(one, run), attempt))
        yield


async def awaited_within(
    middleware: Iterable[Middleware],
    run: RunContext,
    attempt: Attempt,
    function: Callable[..., Coroutine[Any, Any, Any]],
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Return the result of `await function(…)` inside the asynchronous `middleware`; the first is the outermost."""
    async with AsyncExitStack() as entered:
        for one in middleware:
            manager = awaited_manager(one(run), one, "middleware")
            await entered.enter_async_context(_AwaitedSurrounded(manager, attempt))
        return await function(*args, **kwargs)


def begin_span(tracing: Tracing, run: RunContext) -> Callable[[Outcome], None]:
    """Begin a span for the run, and return the function that ends it. Tracing errors are only logged."""
    try:
        end = tracing.processing(run)
    except Exception:
        log.exception("job %s %s: its run has no span", run.job_id, run.task)
        return _no_span

    def contained(outcome: Outcome) -> None:
        try:
            end(outcome)
        except Exception:
            log.exception("job %s %s: the span of its run failed on exit", run.job_id, run.task)

    return contained


def _no_span(outcome: Outcome) -> None: ...
