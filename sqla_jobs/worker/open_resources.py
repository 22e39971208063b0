"""The worker contexts of an application, entered in one process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Generator, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Self

from sqla_jobs.database.binding import Context
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.runtime.stopping import in_turn
from sqla_jobs.tasks.hooks import WorkerContext, awaited_manager, is_asynchronous, name_of, plain_manager
from sqla_jobs.tasks.resources import Resources

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_WHAT = "worker context"
Await = Callable[[Coroutine[Any, Any, Any]], Any]
"""Awaits a coroutine in the event loop of coroutine tasks, from another thread, and returns its result."""


class Contexts:
    """The worker contexts of one process, and the resources that they yield."""

    def __init__(self, contexts: Iterable[WorkerContext], around: Context) -> None:
        """Prepare to enter `contexts`. Each context is entered and left inside `around(None)`."""
        self._contexts = list(contexts)
        self._around = around
        self._entered: list[tuple[str, AbstractContextManager[Any] | _Hosted]] = []
        self.resources: Resources = Resources()

    @property
    def need_loop(self) -> bool:
        """True if any of the contexts is asynchronous."""
        return any(is_asynchronous(one) for one in self._contexts)

    @contextmanager
    def entered(self, awaited: Await) -> Generator[None]:
        """Enter the contexts for the duration of the block."""
        self.enter(awaited)
        try:
            yield
        finally:
            self.leave(awaited)

    def enter(self, awaited: Await) -> None:
        """Enter the contexts in order. If one fails, leave the earlier contexts, and raise `ConfigurationError`."""
        for one in self._contexts:
            try:
                with self._around(None):
                    self.resources.add(self._enter(one, awaited))
            except BaseException as error:
                self.leave(awaited)
                if not isinstance(error, Exception):
                    raise
                name = f"{one.__module__}.{name_of(one)}"
                log.exception("the worker context %s cannot be entered", name)
                raise ConfigurationError(
                    f"the worker context {name} cannot be entered, so the worker does not start: "
                    f"{type(error).__name__}: {error!s:.500}"
                ) from error

    def _enter(self, target: WorkerContext, awaited: Await) -> Any:
        one: AbstractContextManager[Any] | _Hosted
        if is_asynchronous(target):
            one, value = awaited(_Hosted.enter(awaited_manager(target(), target, _WHAT)))
        else:
            one = plain_manager(target(), target, _WHAT)
            value = one.__enter__()
        self._entered.append((name_of(target), one))
        return value

    def leave(self, awaited: Await) -> None:
        """Leave the contexts in reverse order. If one raises an error, log it and leave the other contexts."""
        leave = [partial(self._leave, name, one, awaited) for name, one in reversed(self._entered)]
        self._entered.clear()
        in_turn(*leave)

    def _leave(self, name: str, one: AbstractContextManager[Any] | _Hosted, awaited: Await) -> None:
        try:
            with self._around(None):
                if isinstance(one, _Hosted):
                    awaited(one.leave())
                else:
                    one.__exit__(None, None, None)
        except Exception:
            log.exception("the worker context %s failed on exit", name)


class _Hosted:
    """An asynchronous context manager in its own asyncio task: some must be left by the task that entered them."""

    def __init__(self, manager: AbstractAsyncContextManager[Any]) -> None:
        loop = asyncio.get_running_loop()
        self._manager = manager
        self._entered: asyncio.Future[Any] = loop.create_future()
        self._leaving: asyncio.Future[None] = loop.create_future()
        self._task = loop.create_task(self._run())

    @classmethod
    async def enter(cls, manager: AbstractAsyncContextManager[Any]) -> tuple[Self, Any]:
        """Enter the manager. Return it in its own asyncio task, and the value that it yields."""
        hosted = cls(manager)
        task, entered = hosted._task, hosted._entered
        await asyncio.wait([task, entered], return_when=asyncio.FIRST_COMPLETED)
        return hosted, entered.result() if entered.done() else task.result()

    async def _run(self) -> None:
        async with self._manager as value:
            self._entered.set_result(value)
            await self._leaving

    async def leave(self) -> None:
        """Leave the manager, unless the loop's owner has cancelled all asyncio tasks, including this one."""
        if not self._leaving.done():
            self._leaving.set_result(None)
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()
