"""A run's coroutine: its cancellation, and the cleanup of asyncio tasks that it leaves behind."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from importlib.util import find_spec
from types import CodeType, FrameType
from typing import Any, cast

from sqlalchemy.util import await_only

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.execution.interrupt import NONE, Interrupt, Stopped
from sqla_jobs.rules.error_text import stack_of_frames
from sqla_jobs.rules.wording import plural

log: logging.Logger = logging.getLogger("sqla_jobs.run")

_ENDING = 1.0
"""Asyncio tasks that a run left behind are cancelled. They may then take this many seconds to end."""

_begun: ContextVar[set[asyncio.Future[Any]] | None] = ContextVar("sqla_jobs_begun", default=None)
"""The unfinished asyncio tasks that the current run has started."""
TaskFactory = Callable[..., "asyncio.Future[Any]"]


class Noting:
    """A task factory for an event loop. It records the asyncio tasks that runs start.

    It creates tasks with the loop's own factory. It ignores tasks that a database driver starts, and tasks started in a
    context of their own, because these may outlive the run. All workers in a loop share one factory; the last worker
    removes it. Call the factory only from the event loop's thread.
    """

    def __init__(self, below: TaskFactory | None) -> None:
        self._below = below
        self._workers = 0

    @classmethod
    def begin(cls, loop: asyncio.AbstractEventLoop) -> Noting:
        """Install the factory in this loop, unless it is already there, and count one more worker."""
        present: Any = loop.get_task_factory()
        noting = present if isinstance(present, Noting) else cls(present)
        if noting is not present:
            loop.set_task_factory(cast("Any", noting))
        noting._workers += 1
        return noting

    def end(self, loop: asyncio.AbstractEventLoop) -> None:
        """Remove one worker from the count. Restore the loop's own factory after the last worker."""
        self._workers -= 1
        present: Any = loop.get_task_factory()
        if not self._workers and present is self:  # otherwise the application has wrapped this factory
            loop.set_task_factory(self._below)

    def __call__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any) -> Any:
        below = self._below
        task = below(loop, coroutine, **options) if below else asyncio.Task(coroutine, loop=loop, **options)
        context: Context | None = options.get("context")
        begun = _begun.get() if context is None else context.get(_begun)
        if begun is not None and not _is_of_driver(coroutine):
            begun.add(task)
            task.add_done_callback(begun.discard)
        return task


def _is_of_driver(coroutine: Coroutine[Any, Any, Any]) -> bool:
    """Return whether the coroutine belongs to asyncpg, which cancels queries in tasks that must run to their end."""
    frame: FrameType | None = getattr(coroutine, "cr_frame", None)
    return frame is not None and str(frame.f_globals.get("__name__")).startswith("asyncpg.")


def soon(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: object) -> None:
    """Call `callback` in the loop's thread. Do nothing if the application has closed the loop."""
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError as error:
        log.debug("%s: %r is not called", error, callback)


def check_greenlet(task: str) -> None:
    """Raise `ConfigurationError` if greenlet, which coroutine tasks need, is not installed."""
    if find_spec("greenlet") is None:
        raise ConfigurationError(f"{task} is a coroutine task, which needs greenlet: pip install 'sqla-jobs[asyncio]'")


class CoroutineBody:
    """The cancellable part of a run, in an asyncio task of its own. Flush, fence and commit happen outside this part.

    Call `run` in an SQLAlchemy greenlet in the loop's thread, and `interrupt` and `abandon` in any thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._kind: type[Interrupt] | None = None
        """The reason for the cancellation, also while `shielded` blocks hold it back."""
        self.cancelled_at: float | None = None
        """When the coroutine was cancelled, by `time.monotonic()`. Infinite once it has ended, or is abandoned."""
        self.task: asyncio.Task[Any] | None = None
        self._coroutine: Coroutine[Any, Any, Any] | None = None
        self._shields = 0
        """The number of `shielded` blocks that the coroutine is currently in."""
        self._is_over: asyncio.Future[None] = loop.create_future()

    def run(
        self,
        owner: object,
        function: Callable[..., Coroutine[Any, Any, Any]],
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] = NONE,
    ) -> Any:
        """Await `function(…)`. Raises an `Interrupt` if the coroutine ends because `interrupt` cancelled it."""
        self._coroutine = function(*args, **kwargs)
        context, begun = copy_context(), set[asyncio.Future[Any]]()
        context.run(_begun.set, begun)
        self.task = self._loop.create_task(self._contained(self._coroutine), context=context)
        try:
            await_only(self._is_over)
        except asyncio.CancelledError:  # the loop's owner is cancelling all the loop's tasks
            self._kind = self._kind or Stopped  # even if the coroutine has just ended: it was cancelled, too
            self._cancel(self._kind)
            await_only(asyncio.wait([self.task], timeout=_ENDING))
        finally:
            if self.cancelled_at is not None:
                self.cancelled_at = math.inf
            self._end_all(owner, [one for one in begun if not one.done()])
        return self._result()

    async def _contained(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await coroutine
        except (KeyboardInterrupt, SystemExit) as error:
            return _Raised(error)
        finally:
            self._on_done()

    def _end_all(self, owner: object, left: list[asyncio.Future[Any]]) -> None:
        """Cancel the asyncio tasks that the run left behind. Wait for these tasks if the run itself has ended."""
        if not left:
            return
        for one in left:
            one.cancel()
        if self._has_ended:
            await_only(asyncio.wait(left, timeout=_ENDING))
        still = sum(not one.done() for one in left)
        log.warning(
            "%s left %s behind, which were cancelled%s: %s",
            owner,
            plural(len(left), "asyncio task"),
            f" ({still} of them still run)" if still else "",
            ", ".join(sorted(map(_name, left)))[:500],
        )

    @property
    def _has_ended(self) -> bool:
        return self.task is not None and self.task.done()

    def _result(self) -> Any:
        if self._kind is not None and not self._has_ended:
            raise self._kind(is_abandoned=True)
        task, self.task = self.task, None
        assert task is not None
        try:
            result = task.result()
        except asyncio.CancelledError as error:
            if self._kind is None:
                raise
            raise self._kind().with_traceback(error.__traceback__) from None
        finally:
            del task  # the task references its exception, whose traceback references this frame
        if isinstance(result, _Raised):
            raise result.error
        return result

    def interrupt(self, owner: object, kind: type[Interrupt]) -> None:
        """Cancel the coroutine once, if it is currently running. It runs only for `owner`."""
        soon(self._loop, self._cancel, kind)

    def _cancel(self, kind: type[Interrupt]) -> None:
        if self.task is None or self.task.done():
            return
        self._kind = self._kind or kind
        if not self._shields and self.cancelled_at is None:
            self.cancelled_at = time.monotonic()
            self.task.add_done_callback(self._on_done)  # a task cancelled before its start never runs `_contained`
            self.task.cancel()

    @contextmanager
    def shielded(self) -> Generator[None]:
        """Hold a cancellation back until the end of the block. Enter it in the loop's thread."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
            if self._kind is not None:
                self._cancel(self._kind)

    def abandon(self) -> None:
        """Stop waiting for a coroutine that is still running after its cancellation."""
        self.cancelled_at = math.inf
        soon(self._loop, self._on_done)

    def _on_done(self, task: object = None) -> None:
        if not self._is_over.done():
            self._is_over.set_result(None)

    def stack(self) -> str:
        """Return the coroutine's stack, as text."""
        if self._coroutine is None:
            return "its own code has not begun: it may wait for a connection"
        frames: list[FrameType] = []
        waits: Any = self._coroutine
        while (frame := getattr(waits, "cr_frame", None) or getattr(waits, "gi_frame", None)) is not None:
            frames.append(frame)
            waits = getattr(waits, "cr_await", None) or getattr(waits, "gi_yieldfrom", None)
        return stack_of_frames(frames) if frames else "its coroutine has ended"


class _Raised:
    """A wrapper for an exception that would end the event loop if an asyncio task raised it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _name(task: asyncio.Future[Any]) -> str:
    if not isinstance(task, asyncio.Task):
        return repr(task)
    code: CodeType | None = getattr(task.get_coro(), "cr_code", None)
    return task.get_name() if code is None else f"{task.get_name()} ({code.co_qualname})"
