"""The event loop in which a worker runs coroutine tasks."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextvars import Context
from datetime import UTC, datetime, timedelta
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from sqla_jobs.execution.coroutine import Noting, soon
from sqla_jobs.rules.error_text import stack_of

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_BLOCKED = 1.0
"""Seconds after which a loop that does not answer is told of."""
_STOP = 5.0
"""Seconds that the loop gets to end."""
_GOES_ON = 1.0
"""Seconds after which a loop counts as going on, although all it ran was cancelled."""
_RUNS = "_contained"
"""The function below which the stack of a blocked loop is a task's own."""


class EventLoop:
    """An event loop in a thread of its own, with uvloop where that is installed; or that of the application."""

    def __init__(self, app: asyncio.AbstractEventLoop | None = None) -> None:
        """`app` is the loop of the application, which runs in the calling thread."""
        self.is_own: bool = app is None
        """Whether the worker made it; else it is that of the application."""
        self._app = app
        self._thread = threading.Thread(target=self._run, name="sqla_jobs-loop", daemon=True)
        self._ident = 0
        """The thread that runs the loop, once that has answered."""
        self._is_stopping = False
        self._asked_at: float | None = None
        """When it was asked for an answer that has not come."""
        self._is_told = False
        self._held_up_by: str | None = None

    @property
    def held_up_by(self) -> str | None:
        """What holds up the loop now, since when and where, as far as it was told of."""
        return self._held_up_by

    def start(self) -> None:
        """Begin to run, if it is the worker's own."""
        self.loop: asyncio.AbstractEventLoop = self._app or _new_loop()
        soon(self.loop, self._begin)
        if self.is_own:
            self._thread.start()

    def stop(self) -> None:
        """End the loop, if it is the worker's own, where nothing holds it up."""
        self._is_stopping = True
        soon(self.loop, self._end)
        if self.is_own:
            self._thread.join(_STOP)

    def _begin(self) -> None:
        self._noting = Noting.begin(self.loop)
        self._keep_watch()
        self._answer()

    def _keep_watch(self) -> None:
        """Have an asyncio task in the loop that is cancelled with all others."""
        self._watch = self.loop.create_task(asyncio.Event().wait(), name="sqla_jobs-watch")
        self._watch.add_done_callback(self._on_cancelled)

    def _on_cancelled(self, watch: object) -> None:
        if not self._is_stopping:
            self.loop.call_later(_GOES_ON, self._keep_watch)

    def begin(self, callback: Callable[..., object], *args: object, context: Context) -> None:
        """Call it in the thread of the loop; not while somebody ends that, as `asyncio.run` does by cancelling all.

        What began then would be lost. Raises `RuntimeError` where the application has closed the loop.
        """
        self.loop.call_soon_threadsafe(self._call_unless_ending, callback, args, context, context=context)

    def _call_unless_ending(self, callback: Callable[..., object], args: Sequence[object], context: Context) -> None:
        if self._watch.cancelling():
            self.loop.call_later(_GOES_ON, self._call_unless_ending, callback, args, context, context=context)
        else:
            callback(*args)

    def _end(self) -> None:
        self._noting.end(self.loop)
        self._watch.cancel()
        if self.is_own:
            self.loop.stop()

    @property
    def is_gone(self) -> bool:
        """Whether its application has closed it: what runs there never ends."""
        return not self.is_own and self.loop.is_closed()

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine in the loop, from another thread. Raises `RuntimeError` where its application closed it."""
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        except RuntimeError:
            coroutine.close()
            raise

    def look(self, now: float, current: Callable[[asyncio.Task[Any] | None], object]) -> None:
        """Log the stack of what holds up the loop, once. `current` names what an asyncio task runs."""
        if self._asked_at is None:
            self._asked_at, self._is_told = now, False
            soon(self.loop, self._answer)
        elif now - self._asked_at > _BLOCKED and not self._is_told:
            self._is_told = True
            frame = sys._current_frames().get(self._ident)  # pyright: ignore[reportPrivateUsage]
            stack = "?" if frame is None else stack_of(frame, since=_RUNS)
            who = current(asyncio.current_task(self.loop))
            since = datetime.now(UTC) - timedelta(seconds=now - self._asked_at)
            places = [line.strip() for line in stack.splitlines() if line.lstrip().startswith("File ")]
            where = " … ".join(dict.fromkeys([*places[:1], *places[-1:]])) or "an unknown place"
            log.warning(
                "%s has held up the event loop for %.1f s: nothing else runs there. A coroutine must not block; "
                "asyncio.to_thread(…) calls what does. It is here:\n%s",
                who,
                now - self._asked_at,
                stack,
            )
            self._held_up_by = f"{who} has held it up since {since:%H:%M:%S} UTC, at {where}"

    def _answer(self) -> None:
        self._ident = threading.get_ident()
        self._asked_at = self._held_up_by = None

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            while not self._is_stopping:
                self._run_on()
        finally:
            self.loop.run_until_complete(_end(asyncio.all_tasks(self.loop)))
            self.loop.close()

    def _run_on(self) -> None:
        """A coroutine of a run is contained; an asyncio task or a callback that it has made is not."""
        try:
            self.loop.run_forever()
        except (KeyboardInterrupt, SystemExit) as error:
            log.error("%r was raised in the event loop, which goes on", error)  # noqa: TRY400 - it may show secrets


async def _end(left: set[asyncio.Task[Any]]) -> None:
    """Cancel what was abandoned, once more."""
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
