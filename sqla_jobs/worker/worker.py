"""The worker, which claims, executes and finishes jobs in one process."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import Context, copy_context
from functools import partial
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from sqlalchemy.exc import ProgrammingError

from sqla_jobs.database.binding import Binding
from sqla_jobs.database.explain import explain
from sqla_jobs.database.outages import reached
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.rules.wording import plural
from sqla_jobs.runtime.retrying import RetryLoop
from sqla_jobs.runtime.service import Service
from sqla_jobs.runtime.settings import Settings
from sqla_jobs.runtime.shards import Shards
from sqla_jobs.runtime.stopping import StopRequest, handled, in_turn, stopped_by_signals
from sqla_jobs.worker.contexts import Contexts
from sqla_jobs.worker.coroutines import coroutine_tasks
from sqla_jobs.worker.event_loop import EventLoop
from sqla_jobs.worker.host import Alone, Host
from sqla_jobs.worker.parts import Common, Parts
from sqla_jobs.worker.shared_backlog import SharedSlots

if TYPE_CHECKING:
    from sqla_jobs.jobs import Jobs

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_AGAIN = 0.5
"""Seconds between two looks while another transaction keeps jobs from starting."""


class _Inside(NamedTuple):
    """The application's event loop in which a worker runs, and a copy of its `contextvars` context."""

    loop: asyncio.AbstractEventLoop
    context: Context


class Worker(Service):
    """Claims jobs from its queues and runs them until it is stopped.

    Plain tasks run in threads, and coroutine tasks in an event loop. `run()` blocks until SIGTERM or SIGINT arrives.
    `start()` and `stop()`, or `with`, run the worker inside another program. `async with` also runs coroutine tasks in
    that program's event loop. `drain()` runs the jobs that are due and returns. A worker can be used only once.

    A worker of several databases works in each of them like a worker of its own, but their jobs share its slots, its
    event loop and its worker contexts. A database that cannot be reached delays only its own jobs.
    """

    def __init__(
        self,
        jobs: Jobs[Any],
        bindings: Mapping[str, Binding],
        settings: Settings,
        *,
        host_of: Callable[[str], Host] | None = None,
        stop_requested: StopRequest | None = None,
    ) -> None:
        """Prepare a worker of the databases in `bindings`, by name. The name of a single database may be empty."""
        super().__init__(stop_requested or StopRequest())
        self._jobs = jobs
        self._bindings = bindings
        self._settings = settings
        self._host_of = host_of or self._alone
        self._common: Common | None = None
        self._shards = Shards(bindings, self._connect, self._begin, Parts.close)
        self._names: dict[object, str] = {}
        """The names of the databases by what identifies their tables."""
        self._is_stopped = False
        self._inside: _Inside | None = None
        self._aside = ThreadPoolExecutor(1, "sqla_jobs-start")
        """Starts and stops the worker in its own thread: the event loop's threads may all be busy with jobs."""

    def _alone(self, shard: str) -> Host:
        return Alone(self._jobs._counters)

    def drain(self) -> int:
        """Run the due jobs of the worker's queues, and the jobs that they enqueue, until none is due.

        Jobs that are due later stay: those with a delay, and those that wait for their next attempt. A job that gets no
        connection from the application's pool also stays: it is due again a second or two later.

        Return the number of runs. Queues other than `default` are served only if `queues=` names them.
        """
        with self._signals(), self:
            retry = RetryLoop("looking for work", self._stop_requested)
            moved_at = time.monotonic()
            while not self._stop_requested.is_set():
                before = self.runs
                if not [one for one in self._shards.each() if not one.is_idle(retry)] and self.runs == before:
                    break  # otherwise a job of one database may just have enqueued one in another
                held_up = {task for one in self._shards.each() if not one.attempts for task in one.limited.held_up}
                moved_at = moved_at if held_up and self.runs == before else time.monotonic()
                if time.monotonic() - moved_at > self._settings.patience:
                    raise ConfigurationError(
                        f"not drained: no job of {', '.join(sorted(held_up))} may start while another transaction "
                        "locks the row of a limit: end that transaction, and drain again"
                    )
                self._stop_requested.wait(_AGAIN if held_up else 0.005)
            self._stop_requested.set()  # before the log, whose handler a job may hold up
            for parts in self._shards.each():
                retry.run(partial(parts.log_unserved, logging.WARNING))
            if away := ", ".join(self._shards.away):
                raise ConfigurationError(f"not drained: {away} cannot be reached, as the log says; drain it again")
        return self.runs

    @contextmanager
    def _signals(self) -> Generator[None]:
        """Within the block, SIGTERM and SIGINT stop the worker, and SIGUSR1 logs the stacks of its jobs."""
        with stopped_by_signals(self._stop_requested), handled({signal.SIGUSR1: self._on_stacks_wanted}):
            yield

    def _on_stacks_wanted(self, number: int, frame: FrameType | None) -> None:
        for parts in self._shards.each():
            parts.runners.show_stacks()

    @property
    def runs(self) -> int:
        """The number of runs that have ended in this worker."""
        return sum(parts.attempts.runs for parts in self._shards.each())

    @property
    def last_error(self) -> str | None:
        """The error that currently prevents claims; `None` if the last claim succeeded.

        Of several databases, each whose claims fail is named.
        """
        troubles = [
            f"{name}: {trouble}" if name else trouble
            for name, parts in list(self._shards.at_work.items())
            if (trouble := parts.claimer.trouble) is not None
        ]
        return "; ".join(troubles) or None

    @property
    def _claims_somewhere(self) -> bool:
        """True if the last claim succeeded in one of the databases."""
        return any(parts.claimer.trouble is None for parts in self._shards.each())

    def start(self) -> None:
        """Start the worker's threads. While no host of the database accepts writes, try again for a minute.

        Raises `ConfigurationError` if there is no task or the tables do not fit this version of the library.
        """
        if self._common is not None:
            raise ConfigurationError("this worker was started before: make a new one with jobs.worker(…)")
        declarations = {name: self._jobs.tasks[name]._declaration for name in self._jobs.tasks.complete()}
        self._jobs._keys.check_start(one.encryption for one in declarations.values())
        contexts = Contexts(self._jobs._hooks.worker_contexts, next(iter(self._bindings.values())).context)
        inside = None if self._inside is None else self._inside.loop
        events = EventLoop(inside) if coroutine_tasks(declarations) or contexts.need_loop else None
        slots = {name: SharedSlots() for name in self._settings.queues} if len(self._bindings) > 1 else {}
        self._common = Common(self._jobs, self._settings, declarations, contexts, events, self._on_loop_gone, slots)
        try:
            self._shards.start()
        except BaseException:
            self.stop()
            raise
        self._jobs._counters.serves((one.name, one.defaults["queue"]) for one in declarations.values())

    def _connect(self, name: str) -> Parts:
        assert self._common is not None, "it is made first"
        connect = partial(Parts.connected, self._common, self._bindings[name], self._host_of(name))
        try:
            parts = reached(connect, self._stop_requested) if len(self._bindings) == 1 else connect()
        except ProgrammingError as error:
            raise ConfigurationError(explain(error)) from error
        with ExitStack() as made:
            made.callback(parts.close)
            other = self._names.setdefault(parts.engines.identity(self._jobs._models), name)
            if other != name:
                raise ConfigurationError(f"this is the database {other!r} again, with the same tables: name it once")
            made.pop_all()
        return parts

    def _begin(self, parts: Parts) -> None:
        """Work in a database. In the first database, also enter the worker contexts."""
        assert self._common is not None, "it is made first"
        with ExitStack() as begun:
            begun.callback(parts.stop, self._settings.grace)
            if not self._shards.at_work:
                self._common.enter()
            parts.sign_on()
            parts.start()
            begun.pop_all()

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
        this gives up after `grace` and 10 seconds.
        """
        if self._is_stopped or self._common is None:
            return
        self._is_stopped = True
        self._stop_requested.set()
        grace = min(self._settings.grace, self._stop_requested.grace)
        in_turn(
            lambda: self._shards.stop(lambda parts: parts.stop(grace), patience=self._settings.patience),
            self._common.leave,
            lambda: in_turn(*(parts.close for parts in self._shards.each())),
            self._common.close,
        )
        if self._shards.at_work:
            log.info("worker stopped after %s", plural(self.runs, "run"))

    def _on_loop_gone(self) -> None:
        """Stop: coroutine tasks can no longer run, and the program that would stop this worker is gone."""
        if not self._is_stopped and not self._stop_requested.is_set():
            log.error(
                "the event loop was closed while this worker ran in it: it stops, and gives back what it holds. "
                "Close the loop after the block `async with jobs.worker(…)`"
            )
            self._stop_requested.set()
            assert self._inside is not None, "the loop is the application's"
            self._aside.submit(self._inside.context.run, self.stop)
