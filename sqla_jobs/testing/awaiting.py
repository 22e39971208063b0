"""Runs tasks in tests: coroutines in the test's event loop or, if the test has none, each in a loop of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sqlalchemy.orm import Session
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.execution.interrupt import NONE, Interrupt
from sqla_jobs.tasks.declaration import Declaration


class Here:
    """Runs the code of plain tasks in the calling thread. Nothing interrupts it."""

    def run(
        self, owner: object, function: Callable[..., Any], args: Iterable[Any] = (), kwargs: Mapping[str, Any] = NONE
    ) -> Any:
        """Call `function` and return its result."""
        return function(*args, **kwargs)

    def interrupt(self, owner: object, kind: type[Interrupt]) -> None:
        """Do nothing: runs in tests are not interrupted."""

    def stack(self) -> str:
        """Return a fixed text: the test's own traceback shows the place."""
        return "in the thread of the test"


class InGreenlet(Here):
    """Awaits coroutines in the event loop of the test, below a `run_sync`."""

    def run(
        self, owner: object, function: Callable[..., Any], args: Iterable[Any] = (), kwargs: Mapping[str, Any] = NONE
    ) -> Any:
        """Await `function` and return its result."""
        return await_only(function(*args, **kwargs))


class InOwnLoop(Here):
    """Awaits each coroutine in an event loop of its own."""

    def run(
        self, owner: object, function: Callable[..., Any], args: Iterable[Any] = (), kwargs: Mapping[str, Any] = NONE
    ) -> Any:
        """Await `function` and return its result."""
        return asyncio.run(function(*args, **kwargs))


def body_of(declaration: Declaration, session: Session) -> Here:
    """Return the runner of a task in a test with this session. Raises `ConfigurationError` if nothing can await it."""
    if not declaration.signature.is_coroutine:
        return Here()
    remedy = "write await session.run_sync(lambda own: drain(jobs, own)) with the AsyncSession of the test"
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
    return InOwnLoop()


def around_test(session: Session) -> Any:
    """Return the `AsyncSession` that a test's session belongs to; `None` if there is none."""
    if "sqlalchemy.ext.asyncio" not in sys.modules:
        return None
    from sqlalchemy.ext.asyncio import async_session

    return async_session(session)


def is_test_cancelled() -> bool:
    """Return whether the test's asyncio task is being cancelled, such as by a timeout."""
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
