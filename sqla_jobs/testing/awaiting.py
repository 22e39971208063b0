"""Coroutine tasks in tests: they are awaited in the test's own event loop, or in one for each where it has none."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.execution.interrupt import Interrupt


class Here:
    """Runs the code of tasks in the calling thread. Nothing interrupts it."""

    def run(self, owner: object, function: Callable[..., Any], *args: Any) -> Any:
        """`function(…)`, awaited if it is a coroutine function."""
        return awaited(function(*args))

    def interrupt(self, owner: object, kind: type[Interrupt]) -> None:
        """A test's runs go on."""

    def stack(self) -> str:
        """It is where the test is."""
        return "in the thread of the test"


def awaited(result: Any) -> Any:
    """The result of a coroutine; anything else as it is."""
    if not inspect.iscoroutine(result):
        return result
    if _is_in_greenlet():
        return await_only(result)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(result)
    name = result.cr_code.co_qualname
    result.close()
    raise ConfigurationError(
        f"{name} is a coroutine, and this is called in an event loop: write await session.run_sync(…) with the "
        "AsyncSession of the test, such as await session.run_sync(lambda s: drain(jobs, s))"
    )


def around_test(session: Session) -> Any:
    """The `AsyncSession` around a test's session. Raises `ConfigurationError` where it has none."""
    from sqlalchemy.ext.asyncio import async_session

    if (found := async_session(session)) is None:
        raise ConfigurationError(
            "the task takes an AsyncSession, and the test has a Session: give the test an AsyncSession, and write "
            "await session.run_sync(lambda s: drain(jobs, s))"
        )
    return found


def _is_in_greenlet() -> bool:
    if (greenlet := sys.modules.get("greenlet")) is None:
        return False
    return getattr(greenlet.getcurrent(), "__sqlalchemy_greenlet_provider__", False) is True
