"""Runners for tasks in tests. Coroutines run in the test's event loop, or without one in a loop of `drain` itself."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from contextvars import copy_context
from typing import Any

from sqlalchemy.orm import Session
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.execution.interrupt import NONE, Interrupt
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.worker.open_resources import Await


class Here:
    """Runs the code of tasks in the calling thread. Nothing interrupts it."""

    def __init__(self, awaited: Await | None) -> None:
        """Prepare to run plain tasks, or with `awaited` coroutine tasks."""
        self._awaited = awaited

    def run(
        self, owner: object, function: Callable[..., Any], args: Iterable[Any] = (), kwargs: Mapping[str, Any] = NONE
    ) -> Any:
        """Call or await `function`, and return its result."""
        found = function(*args, **kwargs)
        return found if self._awaited is None else self._awaited(found)

    def interrupt(self, owner: object, kind: type[Interrupt]) -> None:
        """Do nothing: runs in tests are not interrupted."""

    def shielded(self) -> AbstractContextManager[None]:
        """Return a context that does nothing, since nothing interrupts the run."""
        return nullcontext()

    def stack(self) -> str:
        """Return a constant text instead of a stack, which the test's own traceback shows."""
        return "in the thread of the test"


@contextmanager
def awaiting() -> Generator[Await]:
    """Yield a function that awaits coroutines: in the test's loop inside a `run_sync`, else in a loop of its own.

    In a running loop without a `run_sync`, the function raises `ConfigurationError`.
    """
    if sys.modules.get("greenlet") is not None and in_greenlet():
        yield await_only
    elif _is_in_loop():
        yield _refuse
    else:
        with closing(asyncio.Runner()) as runner:  # it makes its loop when it is first used

            def awaited(coroutine: Coroutine[Any, Any, Any]) -> Any:
                return runner.run(coroutine, context=copy_context())

            yield awaited


def _refuse(coroutine: Coroutine[Any, Any, Any]) -> Any:
    coroutine.close()
    raise ConfigurationError(
        "a worker context is asynchronous, and to await it here would block its event loop: write "
        "await session.run_sync(drain, jobs) with the AsyncSession of the test, or give resources=[…]"
    )


def body_of(declaration: Declaration, session: Session, awaited: Await) -> Here:
    """Return a task's runner in a test with this session. Raises `ConfigurationError` if nothing can await the task."""
    if not declaration.signature.is_coroutine:
        return Here(None)
    if awaited is _refuse or (declaration.signature.wants_session and around_test(session) is None):
        raise ConfigurationError(
            f"{declaration.name} is a coroutine task: write await session.run_sync(drain, jobs) with the AsyncSession "
            "of the test"
        )
    return Here(awaited)


def around_test(session: Session) -> Any:
    """Return the `AsyncSession` that a test's session belongs to; `None` if there is none."""
    if "sqlalchemy.ext.asyncio" not in sys.modules:
        return None
    from sqlalchemy.ext.asyncio import async_session

    return async_session(session)


def is_test_cancelled() -> bool:
    """Return whether the test's asyncio task is being cancelled, for example by a timeout."""
    task = asyncio.current_task() if _is_in_loop() else None
    return task is not None and task.cancelling() > 0


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
