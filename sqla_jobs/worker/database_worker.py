"""A worker at its database, from its connections to its threads."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from sqla_jobs.database.binding import Binding
from sqla_jobs.database.engines import IdleConnections, check_writable, close_engine, own_engine, warn_of_small_pool
from sqla_jobs.database.outages import warn_of_slow_hosts
from sqla_jobs.database.preparing import PLANNED_ONCE
from sqla_jobs.database.refusals import reason
from sqla_jobs.execution.executor import Executor
from sqla_jobs.execution.held_job import Attempt
from sqla_jobs.execution.run_lines import log_end
from sqla_jobs.execution.steps import StepsFactory
from sqla_jobs.models.citus import check_unmanaged
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.version import check_version, schema_of
from sqla_jobs.queries import Claimed, Queries, RunEnd
from sqla_jobs.queries.due import waiting_queues
from sqla_jobs.queries.erasing import check_may_erase
from sqla_jobs.rules.outcomes import SUCCEEDED, Failure, Outcome
from sqla_jobs.rules.retention import rules
from sqla_jobs.runtime.retrying import RetryLoop
from sqla_jobs.runtime.set_aside import EVENT_LOOP
from sqla_jobs.runtime.settings import Settings
from sqla_jobs.runtime.stopping import in_turn
from sqla_jobs.runtime.storing import RESCUED
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.worker.attempts import Attempts
from sqla_jobs.worker.backfill import Backfill, store_limits
from sqla_jobs.worker.backlog import Backlog
from sqla_jobs.worker.claimer import Claimer
from sqla_jobs.worker.coroutines import Coroutines
from sqla_jobs.worker.event_loop import EventLoop
from sqla_jobs.worker.events import EventDelivery
from sqla_jobs.worker.finisher import Finisher
from sqla_jobs.worker.heartbeat_loop import Liveness
from sqla_jobs.worker.limited_source import LimitedSource
from sqla_jobs.worker.open_resources import Contexts
from sqla_jobs.worker.pruner import Pruner
from sqla_jobs.worker.resolver import JobResolver
from sqla_jobs.worker.runners import Callbacks, Runners
from sqla_jobs.worker.services import WorkerServices
from sqla_jobs.worker.sessions import (
    STEPS_AT_ONCE,
    TaskTransactions,
    queues_of_sessions,
    sessions_at_once,
    step_connections,
)
from sqla_jobs.worker.with_parent import Host

if TYPE_CHECKING:
    from sqla_jobs.jobs import Jobs

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_SOME = 20
"""The maximum number of queues that a log line names."""
_STOP = 9.0
"""When a worker stops, its parts may take this many seconds more than the grace period: the server may be silent."""
_CLAIM = 2.0
"""Seconds that stopping waits for a claim in progress, before the grace period and after it."""
_LAST = 1.0
"""Seconds kept for the parts that stop after the ends of runs are stored."""
_FLUSH = 10.0
"""The most seconds for storing the remaining ends of runs, and for each part that stops afterwards."""


@dataclass(frozen=True)
class Engines:
    """A worker's own connections, beside those of its jobs."""

    main: sa.Engine
    claims: sa.Engine
    steps: sa.Engine | None
    """The connections of steps are separate: while the table of steps is locked, heartbeats have to go on."""

    @classmethod
    def of(cls, app: sa.Engine, *, patience: float, connections: int, has_steps: bool) -> Self:
        """Return new engines, which connect like `app` once they are used."""
        made = partial(own_engine, app, patience=patience)
        return cls(
            made(most=connections), made(most=2, planning=PLANNED_ONCE), made(most=STEPS_AT_ONCE) if has_steps else None
        )

    def queries(self, models: Models[Any], *, erases: bool, lock_timeout: float) -> Queries:
        """Return the worker's statements, once the tables and the number of free connections are checked."""
        table = models.tables["jobs"]
        # the worker needs three connections: one for listening, one for claims, one for everything else
        with self.main.connect() as connection, self.main.connect(), self.claims.connect():
            check_unmanaged(connection, models)
            check_version(connection, table)
            check_writable(connection)
            if erases:
                check_may_erase(connection, models)
            # a task's own connection may have another search path, so the tables are named with their schema
            return Queries(models, schema_of(connection, table), lock_timeout=lock_timeout)

    def close(self) -> None:
        in_turn(*(partial(close_engine, one) for one in (self.main, self.claims, self.steps) if one is not None))


class DatabaseWorker:
    """A worker at its database. Its parts are built first, then started together, and stopped in order."""

    @classmethod
    def connected(
        cls,
        jobs: Jobs[Any],
        settings: Settings,
        binding: Binding,
        host: Host,
        declarations: dict[str, Declaration],
        contexts: Contexts,
        events: EventLoop | None,
        *,
        loop_gone: Callable[[], None],
    ) -> Self:
        """Connect to the database, check its tables, and build the parts.

        `events` is the event loop of coroutine tasks, if anything needs one. `loop_gone` is called when the
        application's event loop is closed.
        """
        app = binding.engine  # asked for only once: that can take a context of the application
        isolation = binding.check_isolation()
        warn_of_small_pool(app, settings.jobs_of(queues_of_sessions(declarations.values())))
        warn_of_slow_hosts(app, settings.patience)
        has_steps = any(one.signature.wants_context for one in declarations.values())
        with ExitStack() as made:
            engines = Engines.of(app, patience=settings.patience, connections=host.connections, has_steps=has_steps)
            made.callback(engines.close)
            erases = any(one.retention.erases for one in declarations.values())
            services = WorkerServices(
                engines.main,
                engines.claims,
                jobs._models,
                engines.queries(jobs._models, erases=erases, lock_timeout=settings.lease),
                settings,
                Attempts(settings.heartbeat, jobs._counters),
                [Backlog(name, number) for name, number in settings.queues.items()],
            )
            coroutines = Coroutines(declarations, binding, isolation, events)
            sessions = sessions_at_once(declarations.values(), settings, app, coroutines)
            worker = cls(
                jobs,
                services,
                binding,
                host,
                engines,
                declarations,
                contexts,
                coroutines,
                sessions=sessions + STEPS_AT_ONCE * has_steps,
                isolation=isolation,
                loop_gone=loop_gone,
            )
            if events is not None:
                services.set_aside.notes[EVENT_LOOP] = lambda: events.held_up_by
            worker.log_unserved(logging.INFO)
            made.pop_all()
        return worker

    def __init__(
        self,
        jobs: Jobs[Any],
        services: WorkerServices,
        binding: Binding,
        host: Host,
        engines: Engines,
        declarations: dict[str, Declaration],
        contexts: Contexts,
        coroutines: Coroutines,
        *,
        sessions: int,
        isolation: str,
        loop_gone: Callable[[], None],
    ) -> None:
        """Build the parts. Jobs and their steps use up to `sessions` connections."""
        tasks = list(declarations)
        settings, queries = services.settings, services.queries
        self._jobs = jobs
        self._services = services
        self._host = host
        self.engines: Engines = engines
        self._settings = settings
        self.attempts: Attempts = services.attempts
        self._coroutines = coroutines
        self._sessions = sessions
        services.liveness = self._liveness = Liveness(
            services,
            host,
            tasks={name: one.takes.shown() for name, one in declarations.items()},
            sessions=sessions,
            lost=self._on_lost,
            give_back_unknown=self._give_back_unknown,
            leaving=self._tell_of_free_places,
        )
        services.finisher = self._finisher = Finisher(
            engines.main, queries, services.set_aside, settled=self._on_settled
        )
        services.lookout = host.lookout(services, tasks)
        self.resolver: JobResolver = JobResolver(
            engines.main, queries, patience=settings.patience, poll=settings.poll, claim=self._on_queued
        )
        services.resolver = self.resolver
        self._backfill = Backfill(
            queries,
            engines.claims.begin,
            declarations,
            list(settings.queues),
            store=partial(store_limits, engines.main, jobs._models, declarations),
            set_aside=services.set_aside,
        )
        self.limited: LimitedSource = LimitedSource(services, self._backfill, tasks)
        plain = [name for name in tasks if not declarations[name].gates]
        self.claimer: Claimer = Claimer(services, plain, all_tasks=tasks, limited=self.limited)
        self._listener = services.lookout.listener(self.claimer)
        self._events = EventDelivery(engines.main, queries, jobs._hooks, binding.context, tasks)
        sees_starts = self._events.started is not None or jobs._counters.is_wanted
        self._on_start = self._on_started if sees_starts else None
        """Called when a run begins. None if neither handlers nor counters need it."""
        self._step_threads = ThreadPoolExecutor(STEPS_AT_ONCE, "sqla_jobs-steps")
        connections = step_connections(engines.steps or engines.main, self._step_threads)
        self._executor = Executor(
            jobs.tasks,
            TaskTransactions(binding, self._coroutines, queries, settings, isolation).of,
            context=binding.context,
            slot=host.slot,
            timeout=settings.timeout,
            middleware=jobs._hooks.middleware,
            tracing=jobs._hooks.tracing,
            resources=contexts.resources,
            upstream=queries.upstream(engines.main.begin),
            started=self._on_start,
            leaves_misfits=True,
            progressed=self._liveness.wake,
            steps=StepsFactory(queries, connections),
        )
        for name in tasks:
            self._executor.prepare(name)
        self.runners: Runners = Runners(
            services.backlogs,
            Callbacks(
                execute=self._executor.execute,
                ended=self._finisher.put,
                committed=self._on_committed,
                loop_gone=loop_gone,
            ),
            self._coroutines.tasks,
            self._coroutines.events,
            slow_after=settings.slow_after,
            kill_after=settings.kill_after,
        )
        self._pruner: Pruner | None = None
        if settings.retention is not None:  # otherwise another process of the same worker prunes
            declared = [(jobs.tasks.names(task), task._declaration.retention) for task in {*jobs.tasks.values()}]
            self._pruner = Pruner(
                engines.main, jobs._models, settings.retention, [*rules(settings.retention, declared)]
            )

    def sign_on(self) -> None:
        """Store the declared limits, and register the process."""
        self._backfill.declare()
        if (steps := self.engines.steps) is not None:
            self._host.may_close(IdleConnections(steps).close)
        self._host.meet(self._services, self._sessions)
        self._liveness.start()

    def start(self) -> None:
        """Start the threads. If one cannot be started, `stop` ends the others."""
        self._finisher.start()
        self._events.start()
        self.runners.start()
        self._host.may_close(self._coroutines.close_idle)
        self.resolver.start()
        self._listener.start()
        if self._pruner is not None:
            self._pruner.start()
        self.claimer.start()  # last, so that nothing is claimed if another thread cannot be started
        log.info("worker %s serves %s", self._liveness.process_id, self._settings.queues)

    def stop(self, grace: float) -> None:
        """Stop as `Worker.stop` describes, also after a `start` that has raised an error.

        Let running jobs end within `grace` seconds.
        """
        grace_ends = time.monotonic() + grace
        ends = grace_ends + _STOP
        in_turn(
            lambda: self.claimer.stop(_CLAIM),
            self._listener.stop,
            self._give_back,
            *(backlog.close for backlog in self._services.backlogs),
            self.attempts.withdraw,
            lambda: self._wait_for_jobs(grace, _left(grace_ends)),
            *([] if self._pruner is None else [self._pruner.stop]),
            lambda: self.claimer.stop(_CLAIM),
            lambda: self._end_the_rest(grace),
            lambda: self._store_ends(min(_FLUSH, _left(ends - _LAST))),
            lambda: self.resolver.stop(min(_FLUSH, _left(ends))),
            lambda: self._events.stop(_left(ends)),
            lambda: self._liveness.stop(min(_FLUSH, _left(ends))),
        )

    def close(self) -> None:
        """Close the connections, after `stop`."""
        in_turn(self._coroutines.close, self.engines.close, lambda: self._step_threads.shutdown(wait=False))

    def is_idle(self, retry: RetryLoop) -> bool:
        """Return whether nothing is due and nothing runs. If anything is, look for jobs. `drain` calls this."""
        if self.attempts or retry.call(self.claimer.claim_some):
            return False
        is_work_left = retry.call(self.claimer.is_due) or retry.call(self.resolver.resolve_all)
        if not is_work_left and self.limited.rests:  # checked last: one of the above may have been news
            return True
        self.claimer.look_again()
        return False

    def log_unserved(self, level: int) -> None:
        """Log the queues that have due jobs and are not served by this worker."""
        with self.engines.main.begin() as connection:
            waiting = connection.scalars(waiting_queues(self._jobs.Job)).all()
        if others := [name for name in waiting if name not in self._settings.queues]:
            names = ", ".join(others[:_SOME])
            log.log(level, "jobs are due in queues that this worker does not serve (--queues, queues=): %s", names)

    def _wait_for_jobs(self, grace: float, seconds: float) -> None:
        """Let running jobs end within `seconds`, which are left of the `grace` period."""
        if running := len(self.runners.running):
            log.info("stopping: %d running, for at most %g s; a second signal ends at once", running, grace)
        self.runners.wait(seconds)

    def _store_ends(self, seconds: float) -> None:
        if not self._finisher.close(seconds):
            log.error("some outcomes could not be stored; their jobs are taken back when the lease ends")

    def _tell_of_free_places(self) -> None:
        try:
            self.limited.leave()
        except DBAPIError as error:
            log.warning("other workers were not notified of free places, and find them by polling: %s", reason(error))

    def _end_the_rest(self, grace: float) -> None:
        """Give back the jobs that have not started, and record the others that are still running as lost."""
        stranded, late = self.runners.stranded, self.runners.running
        self._end([attempt for attempt in stranded if attempt.started_at is None], Outcome.released())
        why = "its event loop was closed" if stranded else f"this did not end within {grace:g} s"
        lost = Outcome.lost(Failure("Lost", f"the worker stopped, and {why}"))
        for end in (attempt.ended(lost) for attempt in late):
            log_end(end.lease, end.outcome, end.finished - end.started)
        self._end(late, lost)
        self._give_back()  # once more, in case the reply to a claim came late

    def _end(self, attempts: list[Attempt], outcome: Outcome) -> None:
        for attempt in attempts:
            self._finisher.put(attempt.ended(outcome))

    def _give_back(self) -> None:
        """Give back the jobs that no slot has taken, even those claimed under an earlier process id."""
        for backlog in self._services.backlogs:
            self._end(backlog.give_back(), Outcome.released())

    def _on_started(self, attempt: Attempt) -> None:
        self._jobs._counters.begun(attempt.job.task, attempt.job.queue, attempt.waited)
        if self._events.started is not None:
            self._events.started(attempt)

    def _on_committed(self, attempt: Attempt) -> None:
        """Handle an attempt whose run has already stored its own end: a success, a sleep or a wait."""
        ends = [attempt.suspended or attempt.ended(SUCCEEDED)]
        self._on_settled(ends, ends)

    def _on_settled(self, ends: list[RunEnd], stored: list[RunEnd]) -> None:
        """Handle ends that are stored, or whose attempts lost their leases.

        `stored` contains the ends that were stored with their own outcome, or with `cancelled` instead. Any thread may
        call this. Attempts come after limits: otherwise `drain` would see neither these jobs nor those that wait for
        their places.
        """
        self._events.ended(stored)
        self.resolver.ended(ends)
        self.limited.ended(ends)
        self._count(self.attempts.ended(ends))
        for outcome in [end.outcome for end in ends if end.outcome is not SUCCEEDED]:
            if outcome.delay is not None:
                self.claimer.expect(outcome.delay)
            elif outcome.kind == "released":
                self.limited.tell()

    def _count(self, ended: list[RunEnd]) -> None:
        counters = self._jobs._counters
        if not counters.is_wanted:
            return
        counted = [end for end in ended if end.outcome != RESCUED]
        if self._on_start is None:  # counting was off when the worker started
            for end in counted:
                counters.begun(end.lease.task, end.lease.queue, _waited(end))
        counters.ended(counted)

    def _on_queued(self, message: str) -> None:
        self.claimer.heard(message)

    def _on_lost(self) -> None:
        """After the leases are lost, give back waiting jobs, and interrupt jobs behind limits that have begun.

        Other workers may start the interrupted jobs. If these also continued here, the limits would be exceeded.
        """
        self._give_back()
        self.attempts.withdraw()
        for attempt in self.attempts.older_than(0.0):
            if self.limited.limits(attempt.job) and attempt.job.process_id != self._liveness.process_id:
                if attempt.is_running:
                    log.warning(
                        "job %s %s is interrupted: its lease is gone, and another worker may start it",
                        attempt.job.job_id,
                        attempt.job.task,
                    )
                attempt.lose()

    def _give_back_unknown(self, process_id: uuid.UUID) -> None:
        for lease in self.claimer.unknown_leases(process_id):
            self._finisher.put(RunEnd(lease, Outcome.released()))


def _waited(end: RunEnd) -> float:
    """Return the seconds from the time when the job was due to the beginning of its run."""
    return (end.lease.waited if isinstance(end.lease, Claimed) else 0.0) + end.started


def _left(until: float) -> float:
    """Return how many seconds are left until a time by `time.monotonic()`."""
    return max(0.0, until - time.monotonic())
