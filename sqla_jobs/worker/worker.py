"""The worker, which claims, executes and finishes jobs in one process."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import Context, copy_context
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from sqlalchemy import Engine
from sqlalchemy.exc import ProgrammingError
from typing_extensions import deprecated

from sqla_jobs.database.binding import Binding
from sqla_jobs.database.engines import warn_of_small_pool
from sqla_jobs.database.explain import explain
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.queries.due import waiting_queues
from sqla_jobs.rules.wording import plural
from sqla_jobs.runtime.retrying import RetryLoop
from sqla_jobs.runtime.service import Service
from sqla_jobs.runtime.settings import Settings
from sqla_jobs.runtime.stopping import handled, stopped_by_signals
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.worker.contexts import Contexts
from sqla_jobs.worker.coroutines import Coroutines
from sqla_jobs.worker.host import Alone, Host
from sqla_jobs.worker.parts import Engines, Parts
from sqla_jobs.worker.sessions import queues_of_sessions

if TYPE_CHECKING:
    from sqla_jobs.jobs import Jobs

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_SOME = 20
"""The maximum number of queues that a log line names."""


class _Inside(NamedTuple):
    """The application's event loop in which a worker runs, and a copy of its `contextvars` context."""

    loop: asyncio.AbstractEventLoop
    context: Context


class Worker(Service):
    """Claims jobs from its queues and runs them until it is stopped.

    Plain tasks run in threads, and coroutine tasks in an event loop. `run()` blocks until SIGTERM or SIGINT arrives.
    `start()` and `stop()`, or `with`, run the worker inside another program. `async with` also runs coroutine tasks in
    that program's event loop. `drain()` runs the jobs that are due and returns. A worker can be used only once.
    """

    def __init__(
        self,
        jobs: Jobs[Any],
        binding: Binding,
        settings: Settings,
        host: Host | None = None,
    ) -> None:
        self._host = host or Alone(jobs._counters)
        super().__init__(self._host.stop)
        self._jobs = jobs
        self._binding = binding
        self._settings = settings
        self._parts: Parts | None = None
        self._is_stopped = False
        self._inside: _Inside | None = None
        self._aside = ThreadPoolExecutor(1, "sqla_jobs-start")
        """Starts and stops the worker in its own thread: the event loop's threads may all be busy with jobs."""

    def drain(self) -> int:
        """Run the due jobs of the worker's queues, and the jobs that they enqueue, until none is due.

        Jobs that are due later stay: those with a delay, and those that wait for their next attempt. A job that gets no
        connection from the application's pool also stays: it is due again a second or two later.

        Return the number of runs. Queues other than `default` are served only if `queues=` names them.
        """
        with self._signals(), self:
            retry = RetryLoop("looking for work", self._stop_requested)
            parts = self._parts
            assert parts is not None, "the block has started it"
            while not self._stop_requested.is_set():
                if not parts.attempts and not retry.call(parts.claimer.claim_some):
                    is_work_left = retry.call(parts.claimer.is_due) or retry.call(parts.resolver.resolve_all)
                    if not is_work_left and parts.limited.rests:  # checked last: one of the above may have been news
                        break
                    parts.claimer.look_again()
                self._stop_requested.wait(0.005)
            retry.run(lambda: self._log_unserved(parts.engines.main, logging.WARNING))
        return self.runs

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
    @deprecated("Worker.trouble is named last_error since 0.2, and goes with 0.3")
    def trouble(self) -> str | None:
        """The old name of `last_error`."""
        return self.last_error

    @property
    def last_error(self) -> str | None:
        """The error that currently prevents claims; `None` if the last claim succeeded."""
        return None if self._parts is None else self._parts.claimer.trouble

    def start(self) -> None:
        """Start the worker's threads.

        Raises `ConfigurationError` if there is no task or the tables do not fit this version of the library.
        """
        if self._parts is not None:
            raise ConfigurationError("this worker was started before: make a new one with jobs.worker(…)")
        declarations = {name: self._jobs.tasks[name]._declaration for name in self._jobs.tasks.complete()}
        app = self._binding.engine
        isolation = self._binding.check_isolation()
        warn_of_small_pool(app, self._settings.jobs_of(queues_of_sessions(declarations.values())))
        try:
            self._parts = parts = self._signed_on(app, declarations, isolation)
        except ProgrammingError as error:
            raise ConfigurationError(explain(error)) from error
        self._jobs._counters.serves((one.name, one.defaults["queue"]) for one in declarations.values())
        parts.start()

    def _signed_on(self, app: Engine, declarations: dict[str, Declaration], isolation: str) -> Parts:
        """Connect, build the parts, and register the process."""
        settings, host = self._settings, self._host
        has_steps = any(one.signature.wants_context for one in declarations.values())
        with ExitStack() as made:
            engines = Engines.of(app, patience=settings.patience, connections=host.connections, has_steps=has_steps)
            made.callback(engines.close)
            erases = any(one.retention.erases for one in declarations.values())
            queries = engines.queries(self._jobs._models, erases=erases, lock_timeout=settings.lease)
            contexts = Contexts(self._jobs._hooks.worker_contexts, self._binding.context)
            inside = None if self._inside is None else self._inside.loop
            coroutines = Coroutines(declarations, self._binding, isolation, inside, need_loop=contexts.need_loop)
            made.callback(coroutines.close)
            parts = Parts(
                self._jobs,
                self._binding,
                settings,
                host,
                declarations,
                app,
                engines,
                queries,
                contexts,
                coroutines,
                isolation=isolation,
                loop_gone=self._on_loop_gone,
            )
            self._log_unserved(engines.main, logging.INFO)
            parts.sign_on()
            made.pop_all()
        return parts

    def _log_unserved(self, engine: Engine, level: int) -> None:
        """Log the queues that have due jobs and are not served by this worker."""
        with engine.begin() as connection:
            waiting = connection.scalars(waiting_queues(self._jobs.Job)).all()
        if others := [name for name in waiting if name not in self._settings.queues]:
            names = ", ".join(others[:_SOME])
            log.log(level, "jobs are due in queues that this worker does not serve (--queues, queues=): %s", names)

    async def __aenter__(self) -> Self:
        # coroutine tasks inherit the caller's context
        self._inside = _Inside(asyncio.get_running_loop(), copy_context())
        started = self._inside.loop.run_in_executor(self._aside, self._inside.context.run, self.start)
        try:
            await asyncio.shield(started)
        except asyncio.CancelledError:
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
        """
        if self._is_stopped or self._parts is None:
            return
        self._is_stopped = True
        self._stop_requested.set()
        self._parts.stop(min(self._settings.grace, self._stop_requested.grace))
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
