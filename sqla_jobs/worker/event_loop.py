"""The event loop in which a worker runs coroutine tasks."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, wait
from contextvars import Context
from datetime import UTC, datetime, timedelta
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from sqla_jobs.execution.coroutine import Noting, soon
from sqla_jobs.rules.error_text import place_of, stack_of

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_BLOCKED = 1.0
"""Seconds after which a loop that does not answer is reported as blocked."""
_STOP = 5.0
"""Seconds allowed for the loop to end."""
_LOOK = 1.0
"""Seconds between two checks that the application has not closed the loop."""
_LEAVE = 10.0
"""Seconds allowed for an asynchronous worker context to end."""
_GOES_ON = 1.0
"""If a loop still runs this many seconds after all its tasks were cancelled, it is assumed to continue."""
_RUNS = "_contained"
"""The function that calls the task's own code. The logged stack of a blocked loop starts at this function."""


class _Begun(NamedTuple):
    """What the loop's first callback found and installed."""

    noting: Noting
    thread: int
    """The id of the thread that runs the loop."""


class _Question(NamedTuple):
    """A callback that the loop has not called yet."""

    asked_at: float
    held_up_by: str | None = None
    """A description of the job that blocks the loop, once it was logged."""


class EventLoop:
    """The application's event loop, or the worker's own in a separate thread.

    The worker's own loop is uvloop's if uvloop is installed.
    """

    def __init__(self, app: asyncio.AbstractEventLoop | None = None) -> None:
        """Use `app`, the application's running loop, if it is given; otherwise make a loop and start it."""
        self.is_own: bool = app is None
        """True if the worker made the loop; False if it is the application's."""
        self.loop: asyncio.AbstractEventLoop = app or _new_loop()
        self._begun: _Begun | None = None
        self._is_stopping = False
        self._question: _Question | None = None
        """The pending question, if there is one."""
        self._thread = threading.Thread(target=self._run, name="sqla_jobs-loop", daemon=True)
        soon(self.loop, self._begin)
        if self.is_own:
            try:
                self._thread.start()
            except RuntimeError:  # the system allows no more threads
                self.loop.close()
                raise

    @property
    def held_up_by(self) -> str | None:
        """A description of the job that is blocking the loop. None if no such job was logged."""
        question = self._question  # read once: the loop's thread sets it to None
        return None if question is None else question.held_up_by

    def stop(self) -> None:
        """End the loop if it is the worker's own and is not blocked."""
        self._is_stopping = True
        soon(self.loop, self._end)
        if self.is_own:
            self._thread.join(_STOP)

    def _begin(self) -> None:
        self._begun = _Begun(Noting.begin(self.loop), threading.get_ident())
        self._keep_watch()

    def _keep_watch(self) -> None:
        """Keep an asyncio task in the loop, to notice when all of the loop's tasks are cancelled."""
        self._watch = self.loop.create_task(_forever(), name="sqla_jobs-watch")
        self._watch.add_done_callback(self._on_cancelled)

    def _on_cancelled(self, watch: object) -> None:
        if not self._is_stopping:
            self.loop.call_later(_GOES_ON, self._keep_watch)

    def begin(self, callback: Callable[..., object], *args: object, context: Context) -> None:
        """Call `callback` in the loop's thread. If all of the loop's tasks are being cancelled, call it later.

        `asyncio.run` cancels all tasks before it ends a loop, and a job begun then would be lost. Raises `RuntimeError`
        if the application has closed the loop.
        """
        self.loop.call_soon_threadsafe(self._call_unless_ending, callback, args, context, context=context)

    def _call_unless_ending(self, callback: Callable[..., object], args: Sequence[object], context: Context) -> None:
        if self._watch.cancelling():
            self.loop.call_later(_GOES_ON, self._call_unless_ending, callback, args, context, context=context)
        else:
            callback(*args)

    def _end(self) -> None:
        assert self._begun is not None, "the loop called _begin first"
        self._begun.noting.end(self.loop)
        self._watch.cancel()
        if self.is_own:
            self.loop.stop()

    @property
    def is_gone(self) -> bool:
        """True if the application has closed the loop, so that its coroutines never end."""
        return not self.is_own and self.loop.is_closed()

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine in the loop, from another thread.

        Raises `RuntimeError` if the application has closed the loop.
        """
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        except RuntimeError:
            coroutine.close()
            raise

    def awaited(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Await a coroutine in the loop, from another thread, and return its result.

        Raises `RuntimeError` if the application has closed the loop.
        """
        answer = self.call(coroutine)
        while wait([answer], _LOOK).not_done:
            if self.is_gone:
                raise RuntimeError("the event loop was closed")
        return answer.result()

    def awaited_last(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Do the same as `awaited`, but give up after a while: an abandoned coroutine may block the loop forever."""
        return self.call(coroutine).result(_LEAVE)

    def look(self, now: float, current: Callable[[asyncio.Task[Any] | None], object]) -> None:
        """Log, once, the stack of a job that is blocking the loop.

        `current` returns the name of an asyncio task's job.
        """
        question = self._question
        if question is None:
            self._ask(_Question(now))
        elif now - question.asked_at > _BLOCKED and question.held_up_by is None:
            thread = 0 if self._begun is None else self._begun.thread
            frame = sys._current_frames().get(thread)
            stack = "?" if frame is None else stack_of(frame, since=_RUNS)
            who = current(asyncio.current_task(self.loop))
            since = datetime.now(UTC) - timedelta(seconds=now - question.asked_at)
            where = place_of(stack) or "an unknown place"
            log.warning(
                "%s has blocked the event loop for %.1f s: nothing else runs there. A coroutine must not block; "
                "call blocking code with asyncio.to_thread(…). It is here: %s\n%s",
                who,
                now - question.asked_at,
                where,
                stack,
            )
            # asked again, since the first answer may just have come
            self._ask(question._replace(held_up_by=f"{who} has held it up since {since:%H:%M:%S} UTC, at {where}"))

    def _ask(self, question: _Question) -> None:
        self._question = question
        soon(self.loop, self._answer)

    def _answer(self) -> None:
        self._question = None

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            while not self._is_stopping:
                self._run_on()
        finally:
            self.loop.run_until_complete(_end(asyncio.all_tasks(self.loop)))
            self.loop.close()

    def _run_on(self) -> None:
        """Run the loop.

        If an asyncio task or a callback of a job raises an exit, log it: `_contained` does not catch it.
        """
        try:
            self.loop.run_forever()
        except (KeyboardInterrupt, SystemExit) as error:
            log.error("%r was raised in the event loop, which continues", error)  # noqa: TRY400 - it may reveal secrets


async def _forever() -> None:
    await asyncio.get_running_loop().create_future()


async def _end(left: set[asyncio.Task[Any]]) -> None:
    """Cancel abandoned tasks once more."""
    for one in left:
        one.cancel()
    if left:
        await asyncio.wait(left, timeout=_STOP / 5)
    await asyncio.get_running_loop().shutdown_asyncgens()


def _new_loop() -> asyncio.AbstractEventLoop:
    if find_spec("uvloop") is not None:
        loop: asyncio.AbstractEventLoop = import_module("uvloop").new_event_loop()
        return loop
    return asyncio.new_event_loop()
