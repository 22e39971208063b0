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
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, ProgrammingError
from typing_extensions import deprecated

from sqla_jobs.calls.run_lines import log_end
from sqla_jobs.database.binding import Binding
from sqla_jobs.database.engines import IdleConnections, close_engine, own_engine, warn_of_small_pool
from sqla_jobs.database.explain import explain
from sqla_jobs.database.preparing import PLANNED_ONCE
from sqla_jobs.database.refusals import reason
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.execution.attempt import Attempt
from sqla_jobs.execution.executor import Executor
from sqla_jobs.execution.steps import StepsFactory
from sqla_jobs.models.version import check_version, schema_of
from sqla_jobs.queries import Lease, Queries, RunEnd
from sqla_jobs.queries.due import waiting_queues
from sqla_jobs.queries.erasing import check_may_erase
from sqla_jobs.rules.outcomes import Failure, Outcome
from sqla_jobs.rules.retention import rules
from sqla_jobs.rules.wording import plural
from sqla_jobs.runtime.retrying import RetryLoop
from sqla_jobs.runtime.service import Service
from sqla_jobs.runtime.set_aside import EVENT_LOOP, SetAside
from sqla_jobs.runtime.settings import Settings
from sqla_jobs.runtime.stopping import handled, stopped_by_signals
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.worker.attempts import Attempts, Shared
from sqla_jobs.worker.backfill import Backfill
from sqla_jobs.worker.backlog import Backlog
from sqla_jobs.worker.bookkeeping import Bookkeeping
from sqla_jobs.worker.claimer import Claimer
from sqla_jobs.worker.claiming import Claiming
from sqla_jobs.worker.contexts import Contexts
from sqla_jobs.worker.coroutines import Coroutines
from sqla_jobs.worker.events import EventDelivery
from sqla_jobs.worker.finisher import Finisher
from sqla_jobs.worker.host import Alone, Host
from sqla_jobs.worker.limited import LimitedSource
from sqla_jobs.worker.liveness import Liveness
from sqla_jobs.worker.misfits import Misfits
from sqla_jobs.worker.pruner import Pruner
from sqla_jobs.worker.resolver import JobResolver
from sqla_jobs.worker.runners import Callbacks, Runners
from sqla_jobs.worker.sessions import (
    STEPS_AT_ONCE,
    TaskTransactions,
    queues_of_sessions,
    sessions_at_once,
    step_connections,
)

if TYPE_CHECKING:
    from sqla_jobs.jobs import Jobs

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_SOME = 20
"""The maximum number of queues that a log line names."""
_FLUSH = 10.0
"""Seconds allowed for storing the remaining ends of runs when a worker stops."""


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
        self._host = host or Alone(jobs.counters)
        super().__init__(self._host.stop)
        self._jobs = jobs
        self._binding = binding
        self._settings = settings
        self._backlogs = [Backlog(name, number) for name, number in settings.queues.items()]
        self._attempts = Attempts(settings.heartbeat, jobs.counters)
        self._set_aside = SetAside()
        self._started = self._stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        """The application's event loop, if the worker runs inside it."""
        self._context: Context | None = None
        """A copy of the application's `contextvars` context, if the worker runs inside its event loop."""
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
            while not self._stop_requested.is_set():
                if not self._attempts and not retry.call(self._claimer.claim_some):
                    is_work_left = retry.call(self._claimer.is_due) or retry.call(self._resolver.resolve_all)
                    if not is_work_left and self._limited.rests:  # checked last: one of the above may have been news
                        break
                    self._claimer.look_again()
                self._stop_requested.wait(0.005)
            retry.run(lambda: self._log_unserved(logging.WARNING))
        return self.runs

    @contextmanager
    def _signals(self) -> Generator[None]:
        """Within the block, SIGTERM and SIGINT stop the worker, and SIGUSR1 logs the stacks of its jobs."""
        with stopped_by_signals(self._stop_requested), handled({signal.SIGUSR1: self._on_stacks_wanted}):
            yield

    def _on_stacks_wanted(self, number: int, frame: FrameType | None) -> None:
        self._runners.show_stacks()

    @property
    def runs(self) -> int:
        """The number of runs that have ended in this worker."""
        return self._attempts.runs

    @property
    @deprecated("Worker.trouble is named last_error since 0.2, and goes with 0.3")
    def trouble(self) -> str | None:
        """The old name of `last_error`."""
        return self.last_error

    @property
    def last_error(self) -> str | None:
        """The error that currently prevents claims; `None` if the last claim succeeded."""
        return self._claimer.trouble if self._started else None

    def start(self) -> None:
        """Start the worker's threads.

        Raises `ConfigurationError` if there is no task or the tables do not fit this version of the library.
        """
        if self._started:
            raise ConfigurationError("this worker was started before: make a new one with jobs.worker(…)")
        declarations = {name: self._jobs.tasks[name].declaration for name in self._jobs.tasks.complete()}
        app = self._binding.engine
        isolation = self._binding.check_isolation()
        warn_of_small_pool(app, self._settings.jobs_of(queues_of_sessions(declarations.values())))
        try:
            self._sign_on(app, declarations, isolation)
        except ProgrammingError as error:
            raise ConfigurationError(explain(error)) from error
        self._started = True
        self._jobs.counters.serves((one.name, one.defaults["queue"]) for one in declarations.values())
        self._finisher.start(self._books.settled)
        self._events.start()
        self._runners.start(
            Callbacks(
                execute=self._executor.execute,
                ended=self._finisher.put,
                committed=self._books.committed,
                loop_gone=self._on_loop_gone,
            )
        )
        self._host.may_close(self._coroutines.close_idle)
        self._claimer.start()
        self._resolver.start(self._claimer.heard)
        self._lookout.start(self._claimer)
        if self._pruner is not None:
            self._pruner.start()
        log.info("worker %s serves %s", self._liveness.process_id, self._settings.queues)

    def _sign_on(self, app: Engine, declarations: dict[str, Declaration], isolation: str) -> None:
        """Connect, build the parts, enter the worker contexts, and register the process."""
        models, settings = self._jobs.models, self._settings
        table = models.tables["jobs"]
        with ExitStack() as made:
            steps = STEPS_AT_ONCE if any(one.signature.wants_context for one in declarations.values()) else 0
            self._engine = own_engine(app, patience=settings.patience, most=self._host.connections)
            made.callback(self._engine.dispose)
            self._steps = self._engine
            if steps:  # connections of their own: while the table of steps is locked, heartbeats have to go on
                self._steps = own_engine(app, patience=settings.patience, most=steps)
                made.callback(self._steps.dispose)
                self._host.may_close(IdleConnections(self._steps).close)
            self._claims = own_engine(app, patience=settings.patience, most=2, planning=PLANNED_ONCE)
            made.callback(self._claims.dispose)
            # the worker needs three connections: one for listening, one for claims, one for everything else
            with self._engine.connect() as connection, self._engine.connect(), self._claims.connect():
                check_version(connection, table)
                if any(one.retention.erases for one in declarations.values()):
                    check_may_erase(connection, models)
                # a task's own connection may have another search path, so the tables are named with their schema
                queries = Queries(models, schema_of(connection, table), lock_timeout=settings.lease)
            self._build(app, declarations, isolation, queries)
            self._coroutines.start()
            made.callback(self._coroutines.close)
            self._contexts.enter(self._coroutines.awaited)
            made.callback(self._contexts.leave, self._coroutines.awaited_last)
            self._backfill.declare(self._engine, models)
            sessions = sessions_at_once(declarations.values(), settings, app, self._coroutines)
            self._host.meet(self._shared, sessions + steps)
            self._log_unserved(logging.INFO)
            self._liveness.start(sessions + steps)
            made.pop_all()

    def _build(self, app: Engine, declarations: dict[str, Declaration], isolation: str, queries: Queries) -> None:
        """Build the parts without starting them."""
        self._shared = shared = Shared(
            self._engine, self._claims, self._jobs.models, queries, self._settings, self._attempts, self._set_aside
        )
        tasks = list(declarations)
        self._contexts = Contexts(self._jobs.hooks.worker_contexts, self._binding.context)
        need_loop = self._contexts.need_loop
        self._coroutines = Coroutines(declarations, self._binding, isolation, self._loop, need_loop=need_loop)
        if (loop := self._coroutines.events) is not None:
            self._set_aside.notes[EVENT_LOOP] = lambda: loop.held_up_by
        takes = {name: one.takes for name, one in declarations.items()}
        misfits = Misfits(self._jobs.models, takes, self._set_aside)
        self._liveness = Liveness(
            shared,
            self._host,
            misfits,
            tasks={name: one.shown() for name, one in takes.items()},
            lost=self._on_lost,
            unknown_leases=self._on_unknown_leases,
        )
        self._finisher = Finisher(self._engine, queries, self._set_aside)
        self._lookout = self._host.lookout(shared, tasks)
        self._backfill = Backfill(queries, declarations, list(self._settings.queues), self._set_aside)
        self._resolver = JobResolver(self._engine, queries, patience=self._settings.patience, poll=self._settings.poll)
        claiming = Claiming(shared, self._backlogs, self._liveness, self._finisher, self._lookout, self._resolver)
        self._limited = LimitedSource(claiming, self._backfill, tasks)
        plain = [name for name in tasks if not declarations[name].gates]
        self._claimer = Claimer(claiming, plain, all_tasks=tasks, limited=self._limited)
        self._events = EventDelivery(self._engine, queries, self._jobs.hooks, self._binding.context, tasks)
        self._books = Bookkeeping(
            self._attempts, self._jobs.counters, self._events, self._claimer, self._limited, self._resolver
        )
        self._step_threads = ThreadPoolExecutor(STEPS_AT_ONCE, "sqla_jobs-steps")
        self._executor = Executor(
            self._jobs.tasks,
            TaskTransactions(self._binding, self._coroutines, queries, self._settings, isolation).of,
            context=self._binding.context,
            slot=self._host.slot,
            timeout=self._settings.timeout,
            middleware=self._jobs.hooks.middleware,
            tracing=self._jobs.hooks.tracing,
            resources=self._contexts.resources,
            upstream=queries.upstream(self._engine.begin),
            started=self._books.started,
            unfit=misfits.meet,
            progressed=self._liveness.wake,
            steps=StepsFactory(queries, step_connections(self._steps, self._step_threads)),
        )
        for name in tasks:
            self._executor.prepare(name)
        self._runners = Runners(
            self._backlogs,
            self._coroutines.tasks,
            self._coroutines.events,
            slow_after=self._settings.slow_after,
            kill_after=self._settings.kill_after,
        )
        self._pruner = self._make_pruner()

    def _make_pruner(self) -> Pruner | None:
        """Return the pruner; `None` if another process of the same worker prunes."""
        retention = self._settings.retention
        if retention is None:
            return None
        tasks = self._jobs.tasks
        declared = [(tasks.names(task), task.declaration.retention) for task in {*tasks.values()}]
        return Pruner(self._engine, self._jobs.models, retention, [*rules(retention, declared)])

    def _log_unserved(self, level: int) -> None:
        """Log the queues that have due jobs and are not served by this worker."""
        with self._engine.begin() as connection:
            waiting = connection.scalars(waiting_queues(self._jobs.Job)).all()
        if others := [name for name in waiting if name not in self._settings.queues]:
            names = ", ".join(others[:_SOME])
            log.log(level, "jobs are due in queues that this worker does not serve (--queues, queues=): %s", names)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        # coroutine tasks inherit the caller's context
        self._context = copy_context()
        started = self._loop.run_in_executor(self._aside, self._context.run, self.start)
        try:
            await asyncio.shield(started)
        except asyncio.CancelledError:
            self._aside.submit(self._context.run, self.stop)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._context is not None, "the block has begun"
        await asyncio.get_running_loop().run_in_executor(self._aside, self._context.run, self.stop)
        self._aside.shutdown(wait=False)

    def stop(self) -> None:
        """Stop claiming, give back jobs that have not started, let running jobs end within `grace`, and store all ends.

        A job still running after `grace` seconds is recorded as `lost` and left to other workers. The job's thread can
        no longer commit anything through its session. The worker contexts are exited last.
        """
        if self._stopped or not self._started:
            return
        self._stopped = True
        self._stop_requested.set()
        self._claimer.stop()
        self._give_back()
        for backlog in self._backlogs:
            backlog.close()
        self._attempts.withdraw()
        grace = min(self._settings.grace, self._stop_requested.grace)
        if running := len(self._runners.running):
            log.info("stopping: %d running, for at most %g s; a second signal ends at once", running, grace)
        self._runners.wait(grace)
        self._lookout.stop()
        if self._pruner is not None:
            self._pruner.stop()
        stranded, late = self._runners.stranded, self._runners.running
        self._end([attempt for attempt in stranded if attempt.started_at is None], Outcome.released())
        why = "its event loop was closed" if stranded else f"this did not end within {grace:g} s"
        lost = Outcome.lost(Failure("Lost", f"the worker stopped, and {why}"))
        for end in (attempt.ended(lost) for attempt in late):
            log_end(end.lease, end.outcome, end.finished - end.started)
        self._end(late, lost)
        self._give_back()  # once more, in case the reply to a claim came late
        if not self._finisher.close(_FLUSH):
            log.error("some outcomes could not be stored; their jobs are taken back when the lease ends")
        self._resolver.stop(_FLUSH)
        self._events.stop()
        try:
            self._limited.leave()
        except DBAPIError as error:
            log.warning("other workers were not notified of free places, and find them by polling: %s", reason(error))
        try:
            self._liveness.stop()
        except DBAPIError as error:
            log.warning("could not sign off, the lease will run out by itself: %s", reason(error))
        self._contexts.leave(self._coroutines.awaited_last)
        self._coroutines.close()
        close_engine(self._engine)
        close_engine(self._claims)
        close_engine(self._steps)
        self._step_threads.shutdown(wait=False)
        log.info("worker stopped after %s", plural(self.runs, "run"))

    def _end(self, attempts: list[Attempt], outcome: Outcome) -> None:
        for attempt in attempts:
            self._finisher.put(attempt.ended(outcome))

    def _give_back(self) -> None:
        """Give back the jobs that no slot has taken, even those claimed under an earlier process id."""
        for backlog in self._backlogs:
            self._end(backlog.give_back(), Outcome.released())

    def _on_lost(self) -> None:
        """After the leases are lost, give back waiting jobs, and interrupt jobs behind limits that have begun.

        Other workers may start the interrupted jobs. If these also continued here, the limits would be exceeded.
        """
        self._give_back()
        self._attempts.withdraw()
        for attempt in self._attempts.older_than(0.0):
            if self._limited.limits(attempt.job) and attempt.job.process_id != self._liveness.process_id:
                if attempt.is_running:
                    log.warning(
                        "job %s %s is interrupted: its lease is gone, and another worker may start it",
                        attempt.job.job_id,
                        attempt.job.task,
                    )
                attempt.lose()

    def _on_loop_gone(self) -> None:
        """Stop: coroutine tasks can no longer run, and the program that would stop this worker is gone."""
        if not self._stopped and not self._stop_requested.is_set():
            log.error(
                "the event loop was closed while this worker ran in it: it stops, and gives back what it holds. "
                "Close the loop after the block `async with jobs.worker(…)`"
            )
            self._stop_requested.set()
            assert self._context is not None, "the loop is the application's"
            self._aside.submit(self._context.run, self.stop)

    def _on_unknown_leases(self, leases: list[Lease]) -> None:
        for lease in leases:
            self._finisher.put(RunEnd(lease, Outcome.released()))
