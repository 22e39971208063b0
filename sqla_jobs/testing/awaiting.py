"""Runners for tasks in tests. Coroutines run in the test's event loop. Without a loop, each coroutine gets its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from typing import Any

from sqlalchemy.orm import Session
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from sqla_jobs.database.session_classes import name_of
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.execution.interrupt import NONE, Interrupt
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.tasks.hooks import Hooks
from sqla_jobs.tasks.resources import Resources
from sqla_jobs.worker.open_resources import Await, Contexts


class Here:
    """Runs the code of plain tasks in the calling thread. Nothing interrupts it."""

    def run(
        self, owner: object, function: Callable[..., Any], args: Iterable[Any] = (), kwargs: Mapping[str, Any] = NONE
    ) -> Any:
        """Call `function` and return its result."""
        return function(*args, **kwargs)

    def interrupt(self, owner: object, kind: type[Interrupt]) -> None:
        """Do nothing: runs in tests are not interrupted."""

    def shielded(self) -> AbstractContextManager[None]:
        """Return a context that does nothing, since nothing interrupts the run."""
        return nullcontext()

    def stack(self) -> str:
        """Return a constant text instead of a stack, which the test's own traceback shows."""
        return "in the thread of the test"


class InGreenlet(Here):
    """Awaits coroutines in the test's event loop, inside a `run_sync`."""

    def run(
        self, owner: object, function: Callable[..., Any], args: Iterable[Any] = (), kwargs: Mapping[str, Any] = NONE
    ) -> Any:
        """Await `function` and return its result."""
        return await_only(function(*args, **kwargs))


class InOwnLoop(Here):
    """Awaits each coroutine in an event loop of its own, or in that of the worker contexts."""

    def __init__(self, awaited: Await) -> None:
        self._awaited = awaited

    def run(
        self, owner: object, function: Callable[..., Any], args: Iterable[Any] = (), kwargs: Mapping[str, Any] = NONE
    ) -> Any:
        """Await `function` and return its result."""
        return self._awaited(function(*args, **kwargs))


_REMEDY = "write await session.run_sync(drain, jobs) with the AsyncSession of the test"


@contextmanager
def resources_of_test(
    hooks: Hooks, session: Session, given: Iterable[object] | None
) -> Generator[tuple[Resources, Await]]:
    """Enter the worker contexts, unless other resources are `given`.

    Yields the resources, and a function that awaits coroutines outside any event loop. Raises `ConfigurationError`.
    """
    if given is not None:
        yield Resources(given), asyncio.run
        return
    contexts = Contexts(hooks.worker_contexts, hooks.context_in(session))
    if not contexts.need_loop:
        with contexts.entered(asyncio.run):
            yield contexts.resources, asyncio.run
    elif _is_in_greenlet():
        with contexts.entered(await_only):
            yield contexts.resources, asyncio.run
    elif _is_in_loop():
        raise ConfigurationError(
            f"a worker context is asynchronous, and to await it here would hold up the loop: {_REMEDY}, "
            "await run_job(…) with it, or give resources=[…]"
        )
    else:
        with asyncio.Runner() as runner:

            def awaited(coroutine: Coroutine[Any, Any, Any]) -> Any:
                return runner.run(coroutine, context=copy_context())

            with contexts.entered(awaited):
                yield contexts.resources, awaited


def body_of(declaration: Declaration, session: Session, awaited: Await) -> Here:
    """Return a task's runner in a test with this session. Raises `ConfigurationError` if nothing can await the task."""
    check_session(declaration, session)
    if not declaration.signature.is_coroutine:
        return Here()
    remedy = _REMEDY
    if declaration.signature.wants_session and around_test(session) is None:
        raise ConfigurationError(
            f"{declaration.name} takes an AsyncSession, and drain was given a Session that belongs to none: {remedy}"
        )
    if _is_in_greenlet():
        return InGreenlet()
    if _is_in_loop():
        raise ConfigurationError(
            f"{declaration.name} is a coroutine task, and drain would block its event loop: {remedy}"
        )
    return InOwnLoop(awaited)


def check_session(declaration: Declaration, session: Session) -> None:
    """Raise `ConfigurationError` if the test's session is not of the class that the task takes."""
    kind = declaration.signature.session_class
    given = around_test(session) if declaration.signature.is_coroutine else session
    if kind is not None and given is not None and not isinstance(given, kind):
        raise ConfigurationError(
            f"{declaration.name} takes a {name_of(kind)}, and the session of the test is a {name_of(type(given))}: "
            "give one of that class (for sqla_jobs_session, the fixture sqla_jobs_session_class names it)"
        )


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


def _is_in_greenlet() -> bool:
    return sys.modules.get("greenlet") is not None and in_greenlet()
