"""The worker, which claims, executes and finishes jobs in one process."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import Context, copy_context
from functools import partial
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from sqlalchemy.exc import ProgrammingError

from sqla_jobs.database.binding import Binding
from sqla_jobs.database.explain import explain
from sqla_jobs.database.outages import reached
from sqla_jobs.database.shard_name import working_in
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.rules.wording import plural
from sqla_jobs.runtime.retrying import RetryLoop
from sqla_jobs.runtime.service import Service
from sqla_jobs.runtime.settings import Settings
from sqla_jobs.runtime.stopping import StopRequest, handled, stopped_by_signals
from sqla_jobs.worker.coroutines import coroutine_tasks
from sqla_jobs.worker.database_worker import DatabaseWorker
from sqla_jobs.worker.event_loop import EventLoop
from sqla_jobs.worker.open_resources import Contexts
from sqla_jobs.worker.with_parent import Alone, Host

if TYPE_CHECKING:
    from sqla_jobs.jobs import Jobs
    from sqla_jobs.tasks.declaration import Declaration

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_AGAIN = 0.5
"""Seconds between two looks while another transaction keeps jobs from starting."""


class _Inside(NamedTuple):
    """The application's event loop in which a worker runs, and a copy of its `contextvars` context."""

    loop: asyncio.AbstractEventLoop
    context: Context


class Worker(Service):
    """Claims jobs from its queues in one database and runs them until it is stopped.

    Plain tasks run in threads, and coroutine tasks in an event loop. `run()` blocks until SIGTERM or SIGINT arrives.
    `start()` and `stop()`, or `with`, run the worker inside another program. `async with` also runs coroutine tasks in
    that program's event loop. `drain()` runs the jobs that are due and returns. A worker can be used only once. With a
    clock, it also enqueues the jobs of schedules, except in `drain()`.
    """

    def __init__(
        self,
        jobs: Jobs[Any],
        binding: Binding,
        settings: Settings,
        *,
        clock: Service | None = None,
        host: Host | None = None,
        stop_requested: StopRequest | None = None,
    ) -> None:
        super().__init__(stop_requested or StopRequest())
        self._jobs = jobs
        self._binding = binding
        self._settings = settings
        self._clock = clock
        self._host = host or Alone(jobs._counters)
        self._parts: DatabaseWorker | None = None
        """The parts, once they are at work."""
        self._undo = ExitStack()
        """What `stop` calls, the last first."""
        self._state: Literal["new", "started", "stopped"] = "new"
        self._inside: _Inside | None = None
        self._aside = ThreadPoolExecutor(1, "sqla_jobs-start")
        """Starts and stops the worker in its own thread: the event loop's threads may all be busy with jobs."""

    def drain(self) -> int:
        """Run the due jobs of the worker's queues, and the jobs that they enqueue, until none is due.

        Jobs that are due later stay: those with a delay, and those that wait for their next attempt. A job that gets no
        connection from the application's pool also stays: it is due again a second or two later.

        Return the number of runs. Queues other than `default` are served only if `queues=` names them.
        """
        self._clock = None  # what a schedule makes due meanwhile could keep it from ending
        with self._signals(), self:
            working_in(self._jobs._shard_name, self._drain)
        return self.runs

    def _drain(self) -> None:
        parts = self._parts
        assert parts is not None, "the worker has started"
        retry = RetryLoop("looking for work", self._stop_requested)
        moved_at = time.monotonic()
        while not self._stop_requested.is_set():
            before = self.runs
            if parts.is_idle(retry):
                break
            held_up = set() if parts.attempts else parts.limited.held_up
            moved_at = moved_at if held_up and self.runs == before else time.monotonic()
            if time.monotonic() - moved_at > self._settings.patience:
                raise ConfigurationError(
                    f"not drained: no job of {', '.join(sorted(held_up))} may start while another transaction "
                    "locks the row of a limit: end that transaction, and drain again"
                )
            self._stop_requested.wait(_AGAIN if held_up else 0.005)
        self._stop_requested.set()  # before the log, whose handler a job may hold up
        retry.run(partial(parts.log_unserved, logging.WARNING))

    @contextmanager
    def _signals(self) -> Generator[None]:
        """Within the block, SIGTERM and SIGINT stop the worker, and SIGUSR1 logs the stacks of its jobs."""
        with stopped_by_signals(self._stop_requested), handled({signal.SIGUSR1: self._on_stacks_wanted}):
            yield

    def _on_stacks_wanted(self, number: int, frame: FrameType | None) -> None:
        if self._parts is not None:
            self._parts.runners.show_stacks()

    @property
    def runs(self) -> int:
        """The number of runs that have ended in this worker."""
        return 0 if self._parts is None else self._parts.attempts.runs

    @property
    def last_error(self) -> str | None:
        """The error that currently prevents claims; `None` if the last claim succeeded."""
        return None if self._parts is None else self._parts.claimer.trouble

    def start(self) -> None:
        """Start the worker's threads. While no host of the database accepts writes, try again for a minute.

        Raises `ConfigurationError` if there is no task or the tables do not fit this version of the library.
        """
        if self._state != "new":
            raise ConfigurationError("this worker was started before: make a new one with jobs.worker(…)")
        declarations = {name: self._jobs.tasks[name]._declaration for name in self._jobs.tasks.complete()}
        if any(one.secret for one in declarations.values()):
            self._jobs._keys.check_start()
        self._state = "started"
        try:
            working_in(self._jobs._shard_name, partial(self._start, declarations))
        except BaseException:
            self.stop()
            raise
        self._jobs._counters.serves((one.name, one.defaults["queue"]) for one in declarations.values())

    def _start(self, declarations: dict[str, Declaration]) -> None:
        if self._clock is not None:
            self._undo.callback(self._clock.stop)
        contexts = Contexts(self._jobs._hooks.worker_contexts, self._binding.context)
        inside = None if self._inside is None else self._inside.loop
        events = EventLoop(inside) if coroutine_tasks(declarations) or contexts.need_loop else None
        if events is not None:
            self._undo.callback(events.stop)
        connected = partial(
            DatabaseWorker.connected,
            self._jobs,
            self._settings,
            self._binding,
            self._host,
            declarations,
            contexts,
            events,
            loop_gone=self._on_loop_gone,
        )
        try:
            parts = reached(connected, self._stop_requested)
        except ProgrammingError as error:
            raise ConfigurationError(explain(error)) from error
        self._undo.callback(parts.close)
        self._undo.callback(contexts.leave, _no_loop if events is None else events.awaited_last)
        self._undo.callback(lambda: parts.stop(min(self._settings.grace, self._stop_requested.grace)))
        contexts.enter(_no_loop if events is None else events.awaited)
        parts.sign_on()
        parts.start()
        self._parts = parts
        if self._clock is not None:
            self._clock.start()

    async def __aenter__(self) -> Self:
        # coroutine tasks inherit the caller's context
        self._inside = _Inside(asyncio.get_running_loop(), copy_context())
        started = self._inside.loop.run_in_executor(self._aside, self._inside.context.run, self.start)
        try:
            await asyncio.shield(started)
        except asyncio.CancelledError:
            self._stop_requested.set()
            self._aside.submit(self._inside.context.run, self.stop)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._inside is not None, "the block has begun"
        await asyncio.get_running_loop().run_in_executor(self._aside, self._inside.context.run, self.stop)
        self._aside.shutdown(wait=False)

    def stop(self) -> None:
        """Stop claiming, give back jobs that have not started, let running jobs end within `grace`, and store all ends.

        A job still running after `grace` seconds is recorded as `lost` and left to other workers. The job's thread can
        no longer commit anything through its session. The worker contexts are exited last.

        If a part of this fails, the others follow, and the error is raised at the end. While the database is silent,
        this gives up after `grace` and 10 seconds, and a clock after 10 seconds more.
        """
        if self._state != "started":
            return
        self._state = "stopped"
        self._stop_requested.set()
        working_in(self._jobs._shard_name, self._stop)

    def _stop(self) -> None:
        self._undo.close()
        if self._parts is not None:
            log.info("worker stopped after %s", plural(self.runs, "run"))

    def _on_loop_gone(self) -> None:
        """Stop: coroutine tasks can no longer run, and the program that would stop this worker is gone."""
        if self._state == "started" and not self._stop_requested.is_set():
            log.error(
                "the event loop was closed while this worker ran in it: it stops, and gives back what it holds. "
                "Close the loop after the block `async with jobs.worker(…)`"
            )
            self._stop_requested.set()
            assert self._inside is not None, "the loop is the application's"
            self._aside.submit(self._inside.context.run, self.stop)


def _no_loop(coroutine: Coroutine[Any, Any, Any]) -> Any:
    raise AssertionError("a worker context that needs an event loop has one")
