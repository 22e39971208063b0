"""`drain`: runs the due jobs in a test's own session and thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NamedTuple, Self
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from sqla_jobs.clock.firing import fire, fire_due
from sqla_jobs.clock.sync import sync
from sqla_jobs.database.binding import Context
from sqla_jobs.database.commits import write_now
from sqla_jobs.errors import ConfigurationError, JobsError
from sqla_jobs.execution.executor import Executor
from sqla_jobs.execution.held_job import Attempt
from sqla_jobs.execution.interrupt import Interruptible
from sqla_jobs.execution.step_store import Connections
from sqla_jobs.execution.steps import StepsFactory
from sqla_jobs.jobs import Jobs
from sqla_jobs.queries import Claimed, Queries, RunEnd
from sqla_jobs.queries.schedules import ScheduleQueries
from sqla_jobs.queries.values import ALL
from sqla_jobs.rules.outcomes import Outcome, RunOutcome, is_retry
from sqla_jobs.rules.retry import DEFAULT_POLICY
from sqla_jobs.rules.value_checks import check_integer, check_seconds
from sqla_jobs.rules.wording import plural
from sqla_jobs.runtime.storing import as_stored
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.tasks.hooks import RunEvent
from sqla_jobs.tasks.resources import Resources
from sqla_jobs.tasks.run_context import RunContext
from sqla_jobs.tasks.sessions import AnySession, plain_session
from sqla_jobs.testing.awaiting import awaiting, body_of, is_test_cancelled
from sqla_jobs.testing.claims import (
    Savepoints,
    connection_of,
    expire_rows,
    known_tasks,
    process,
    promote,
    queues_of_waiting,
    resolve,
    within_limits,
)
from sqla_jobs.worker.events import event_of, started
from sqla_jobs.worker.open_resources import Await, Contexts

Errors = Literal["raise", "record"]
_FAILED = (RunOutcome.failed, RunOutcome.retried)


@dataclass(frozen=True, slots=True)
class Drained:
    """What `drain` has done. It is true if anything has run."""

    runs: int
    """The number of runs."""
    waiting: list[int]
    """The ids of jobs that are due but did not run; `jobs.why` explains why.

    These jobs wait behind a limit, are paused, are in a queue that was not drained, or have an undeclared task.
    """
    errors: list[BaseException]
    """The exceptions of failed and retried runs that `drain` did not raise, in order."""

    def __bool__(self) -> bool:
        return self.runs > 0


def drain(
    session: AnySession,
    jobs: Jobs[Any],
    *,
    errors: Errors = "raise",
    queues: Iterable[str] | None = None,
    ahead: timedelta | float = 0.0,
    max_runs: int = 1000,
    limits: bool = False,
    schedules: bool = True,
    resources: Iterable[object] | None = None,
) -> Drained:
    """Run the due jobs, and those that they enqueue, in this session and thread. Return what was done.

    Jobs go through the real claim, execution and finish. Each transactional task runs in a savepoint of `session`.
    `drain` never commits or rolls back `session` itself, so a test that rolls it back undoes everything. Deferred
    constraints are checked before the first run. They are checked again at the end of each run and step, as a commit
    does. The writes of a step stay even if its run fails, as they do with a worker.

    - `session`: the test's session.
    - `jobs`: the `Jobs`.
    - `errors`: "raise" records a task's exception, and then raises it with a note that names the job. The jobs after it
      stay due. If the task asks for the retry with `Retry`, or its own `retry=` covers the error, the error is only
      recorded, and the job runs again when it is due. Without `retry=`, any other error is raised, although workers
      would retry the job. "record" records all errors and does not raise them.
    - `queues`: the names of the queues to run. By default all queues are run. (A worker serves only the queues that it
      is given.) A queue that no task, job or schedule has is an error, which is raised after the last run.
    - `ahead`: a timedelta, or seconds. Delayed jobs and retries that are due within that time from now run too, without
      waiting. Schedules, declared and stored, fire the ticks that are due within that time, in order; each tick waits
      until no job is due. Sleeps and waits for signals that end within that time count as over when their job runs
      again.
    - `schedules`: False fires no ticks.
    - `resources`: the objects that tasks find in `run.resources`. By default, these are the objects that the worker
      contexts yield. The contexts are then entered before the first run, and left after the last.
    - `max_runs`: the maximum number of runs. If more are needed, `drain` raises an error.
    - `limits`: True obeys the limits of tasks and queues, and the turns of `fair_by`, which are ignored otherwise. Jobs
      that wait behind a limit do not run. The `waiting` of the returned `Drained` contains the ids of the jobs that are
      due but did not run.

    Each run happens inside the middleware and the context that workers use: the `context=` of `jobs.bind`. With Flask,
    the context is a new application context, whose `db.session` is that of the test.

    An asynchronous test calls `await session.run_sync(drain, jobs)` on its `AsyncSession`. Coroutine
    tasks are then awaited in the test's event loop, and get that `AsyncSession`. In a synchronous test, coroutine tasks
    without a session run in an event loop of `drain`.

    Raises a task's exception. Raises `JobsError` if jobs are still due after `max_runs`, or if a task rolls back or
    closes the session. Raises `ConfigurationError` for a coroutine task that cannot be awaited; its job stays due. Also
    raises `ConfigurationError` if a worker would refuse to start, as when two tasks declare one limit differently.
    """
    if errors not in ("raise", "record"):
        raise ConfigurationError(f"errors must be 'raise' or 'record', got {errors!r:.60}")
    own = plain_session(session, "drain(session, jobs)")
    seconds = check_seconds("ahead", ahead)
    check_integer("max_runs", max_runs, least=0, most=1_000_000_000)
    if isinstance(queues, str):
        raise ConfigurationError(f"queues must be a list of names, such as [{queues!r:.60}]")
    names = None if queues is None else list(queues)
    recorded, runs = list[BaseException](), 0
    with Runner.entered(jobs, own, ahead=seconds, resources=resources) as runner:
        ticks = Ticks(jobs, own, seconds) if seconds and schedules else None
        find = _finder(jobs, own, runner, names, seconds, ticks, limits=limits)
        while (job := find()) is not None:
            if runs == max_runs:
                raise JobsError(
                    f"after {plural(runs, 'run')} job {job.job_id} ({job.task}) is still due: raise max_runs=; if "
                    "the runs never end, look for a task that enqueues itself, or for a long ahead="
                )
            error, end, is_suspended = runner.run(job)
            runs += not job.is_expired
            if error is not None and not is_suspended and end.outcome.kind in _FAILED:
                is_expected = _is_expected(jobs.tasks[job.task]._declaration, error, end)
                if (errors == "raise" and not is_expected) or is_test_cancelled():
                    error.add_note(_note(job, end))
                    raise error
                recorded.append(error)
    return Drained(runs, _waiting(jobs, own), recorded)


class Ended(NamedTuple):
    """What a run has come to."""

    error: BaseException | None
    """What the run has raised."""
    end: RunEnd
    """The end, as stored."""
    is_suspended: bool
    """True if the job sleeps, or waits for a signal."""


class Runner:
    """Runs claimed jobs in a test's session, through the worker's own execution and finish."""

    def __init__(
        self,
        jobs: Jobs[Any],
        session: Session,
        process_id: UUID,
        ahead: float,
        resources: Resources,
        awaited: Await,
    ) -> None:
        self.process_id = process_id
        """The process that the jobs belong to while they run."""
        self.queries: Queries = Queries(jobs._models)
        self._jobs = jobs
        self._session = session
        self._awaited = awaited
        self._context = jobs._hooks.context_in(session)
        self._raised = _Raised()
        savepoints = Savepoints(session, jobs._models, self.queries)
        savepoints.check_constraints()
        self._executor = Executor(
            jobs.tasks,
            lambda declaration: savepoints,
            context=lambda run: self._raised.around(run, self._context),
            middleware=jobs._hooks.middleware,
            tracing=jobs._hooks.tracing,
            resources=resources,
            upstream=self.queries.upstream(lambda: nullcontext(session)),
            steps=StepsFactory(
                self.queries, Connections(savepoints.once, savepoints.outside, greenlet_spawn), ahead=ahead
            ),
        )

    @classmethod
    @contextmanager
    def entered(
        cls, jobs: Jobs[Any], session: Session, *, ahead: float, resources: Iterable[object] | None
    ) -> Generator[Self]:
        """Enter the worker contexts, and yield a runner. Sleeps that end within `ahead` seconds count as over.

        Raises `JobsError` if the jobs have ended the session's transaction.
        """
        known_tasks(jobs, session)
        contexts = Contexts(jobs._hooks.worker_contexts if resources is None else [], jobs._hooks.context_in(session))
        with awaiting() as awaited, contexts.entered(awaited), process(jobs, session) as process_id:
            found = contexts.resources if resources is None else Resources(resources)
            yield cls(jobs, session, process_id, ahead, found, awaited)
            if session.get(jobs.Process, process_id, populate_existing=True) is None:
                raise JobsError(
                    "the session of the test was rolled back or closed while jobs ran, which undid their work: by a "
                    "task, by a middleware, or by the context= of jobs.bind"
                )

    def run(self, job: Claimed) -> Ended:
        """Run a job that `process_id` has claimed, store its end, and call the event handlers."""
        attempt = Attempt(job, time.monotonic())
        body = _body(self._jobs, self._session, self.queries, attempt, self._awaited)
        if not job.is_expired:
            _tell(self._jobs, self._context, started(job))
        error, end = self._raised.by(self._executor, attempt, body)
        is_stored = attempt.suspended or attempt.ended(Outcome.succeeded())
        stored = is_stored if end is None else _finish(self.queries, self._session, end)
        if stored.outcome.kind == RunOutcome.lost:
            raise _unrecorded(job) from error
        if event := event_of(stored):
            _tell(self._jobs, self._context, event)
            if event.name == "failed":
                self.queries.mark_delivered(self._session, [event.run_id])
        expire_rows(self._jobs, self._session)
        return Ended(error, stored, attempt.suspended is not None)


def _body(jobs: Jobs[Any], session: Session, queries: Queries, attempt: Attempt, awaited: Await) -> Interruptible:
    """Return the task's runner. If nothing here can run the task, release the job and raise `ConfigurationError`."""
    try:
        return body_of(jobs.tasks[attempt.job.task]._declaration, session, awaited)
    except ConfigurationError:
        _finish(queries, session, attempt.ended(Outcome.released()))
        raise


def _finish(queries: Queries, session: Session, end: RunEnd) -> RunEnd:
    """Store the end of a run, and return it as stored."""
    return as_stored(end, queries.finish(session, [end]).get(end.lease.run_id))


def _tell(jobs: Jobs[Any], context: Context, event: RunEvent) -> None:
    """Call the event handlers inside `context`, as workers do. Ctrl-C and `pytest.fail` propagate to the test."""
    if jobs._hooks.wanted([event.name]):
        with context(None):
            jobs._hooks.tell(event, caught=Exception)


class _Raised:
    """Remembers the exception of a run."""

    def __init__(self) -> None:
        self._error: BaseException | None = None

    @contextmanager
    def around(self, run: RunContext | None, context: Context) -> Generator[None]:
        """Enter the context of a run, and remember an exception from inside it or from the context itself."""
        with self._remembered(), context(run), self._remembered():
            yield

    @contextmanager
    def _remembered(self) -> Generator[None]:
        try:
            yield
        except BaseException as error:
            self._error = self._error or error
            raise

    def by(
        self, executor: Executor, attempt: Attempt, body: Interruptible
    ) -> tuple[BaseException | None, RunEnd | None]:
        """Execute the attempt. Return its exception, and its end unless the end is already stored."""
        self._error = None
        end = executor.execute(attempt, body)
        error, self._error = self._error, None
        return error, end


def _is_expected(declaration: Declaration, error: BaseException, end: RunEnd) -> bool:
    """Return whether the task asked for the retry, or its own `retry=` covers the error.

    No `retry=` covers Ctrl-C or `pytest.fail`.
    """
    is_retried = end.outcome.kind == RunOutcome.retried and isinstance(error, Exception)
    return is_retried and (is_retry(error) or declaration.policy is not DEFAULT_POLICY)


def _unrecorded(job: Claimed) -> JobsError:
    return JobsError(
        f"the run of job {job.job_id} ({job.task}) cannot be recorded: the task, its middleware or its context has "
        "rolled back or closed the session of the test, and with it the claim of the job, or has changed the job "
        "itself. In the task, undo with `with session.begin_nested():` instead of session.rollback(), or test it with "
        "jobs.worker(bind=…).drain()"
    )


def _note(job: Claimed, end: RunEnd) -> str:
    is_retried = end.outcome.kind == RunOutcome.retried
    return (
        f"raised by job {job.job_id}, attempt {job.attempt} of {job.max_attempts} at {job.task!r}"
        f"{'; a worker would retry it, but the task has no retry= that covers it' if is_retried else ''}; "
        "drain(…, errors='record') only records it"
    )


def _finder(
    jobs: Jobs[Any],
    session: Session,
    runner: Runner,
    queues: list[str] | None,
    ahead: float,
    ticks: Ticks | None,
    *,
    limits: bool,
) -> Callable[[], Claimed | None]:
    """Return a function that claims the next job. If none is due, it fires the next ticks first."""
    queries = runner.queries
    claim = within_limits(jobs, session, queries) if limits else queries.claim_whatever_the_limits

    def claimed() -> Claimed | None:
        write_now(session)
        resolve(session, queries)
        promote(session, queries, ahead=ahead)
        for queue in queues_of_waiting(jobs, session) if queues is None else queues:
            if found := claim(session, runner.process_id, {queue: 1}, list(jobs.tasks)):
                expire_rows(jobs, session)
                return found[0]
        return None

    def find() -> Claimed | None:
        while (job := claimed()) is None:
            if ticks is None or not ticks.fire_next():
                return None
        return job

    return find


def _waiting(jobs: Jobs[Any], session: Session) -> list[int]:
    due = sa.select(jobs.Job.id).where(jobs.Job.state == "queued").order_by(jobs.Job.id)
    return [*session.scalars(due)]


class Ticks:
    """The ticks of all schedules, declared and stored, within `ahead` seconds from now."""

    def __init__(self, jobs: Jobs[Any], session: Session, ahead: float) -> None:
        """Store the declared schedules and fire the due ticks, as a clock does when it starts."""
        self._jobs = jobs
        self._session = session
        self._ahead = timedelta(seconds=ahead)
        self._queries = ScheduleQueries(jobs._models)
        sync(session, jobs._models, jobs.schedules)
        while fire_due(connection_of(jobs, session), self._queries, jobs.tasks, ALL)[1]:
            pass
        expire_rows(jobs, session)

    def fire_next(self) -> bool:
        """Fire the ticks of the next time at which one is due, as if it were now. Return False if there is none."""
        schedule: Any = self._jobs.Schedule
        horizon = sa.func.clock_timestamp() + self._ahead
        upcoming = sa.select(sa.func.min(schedule.next_run_at)).where(schedule.enabled, schedule.next_run_at <= horizon)
        connection = connection_of(self._jobs, self._session)
        moment = connection.scalar(upcoming)
        if moment is None:
            return False
        now = sa.literal(moment, sa.DateTime(timezone=True)).label("now")
        columns = schedule.__table__.c
        due = sa.select(*columns, sa.false().label("is_changed"), now).where(
            columns.enabled, columns.next_run_at == moment
        )
        fired = fire(connection, self._queries, self._jobs.tasks, connection.execute(due).all())
        expire_rows(self._jobs, self._session)
        return fired is not None
