"""`Jobs`: one application's job models, tasks and database, and all the operations on them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar, Unpack, overload

from sqlalchemy.orm import registry

from sqla_jobs.actions import batches, limits, pausing, signals
from sqla_jobs.actions.audit import Changing
from sqla_jobs.actions.batches import BatchCounts
from sqla_jobs.actions.bulk_change import Change, Changed
from sqla_jobs.actions.jobs import Alter, Cancel, Delete, Erase, Retry
from sqla_jobs.actions.limits import UNSET
from sqla_jobs.actions.selection import Selection, selected
from sqla_jobs.binds import Bound
from sqla_jobs.database.binding import Bind
from sqla_jobs.database.notify import tell_of_jobs, tell_of_schedules
from sqla_jobs.database.sharding import is_sharded
from sqla_jobs.errors import ArgumentsError, ConfigurationError
from sqla_jobs.models.columns import (
    AuditMixin,
    JobMixin,
    LimitMixin,
    PausedTaskMixin,
    ProcessMixin,
    QueueMixin,
    RunMixin,
    ScheduleMixin,
    StartMixin,
    TickMixin,
)
from sqla_jobs.models.defaults import name_only_what_is_set
from sqla_jobs.models.mapping import Models, map_models
from sqla_jobs.models.workflow_columns import BatchMixin, EdgeMixin, SignalMixin, StepMixin
from sqla_jobs.rules.outcomes import RunOutcome
from sqla_jobs.rules.value_checks import check_seconds, check_text
from sqla_jobs.runtime.counters import Counters
from sqla_jobs.tasks.declaration import TaskOptions, declare
from sqla_jobs.tasks.hooks import E, EventName, H, Hooks, M, S, W, event_names
from sqla_jobs.tasks.key_ring import EncryptionKeys, KeyRing
from sqla_jobs.tasks.registry import Tasks
from sqla_jobs.tasks.schedule import Schedules
from sqla_jobs.tasks.sessions import AnySession, any_session, plain_session, session_at
from sqla_jobs.tasks.task import Task, TaskLike

if TYPE_CHECKING:
    from sqla_jobs.clock import Clock
    from sqla_jobs.following.follow import Following
    from sqla_jobs.following.updates import JobUpdate
    from sqla_jobs.runtime.settings import WorkerOptions
    from sqla_jobs.worker import Worker

C = ParamSpec("C")
R = TypeVar("R")
T = TypeVar("T")
J = TypeVar("J", bound=JobMixin)
JT = TypeVar("JT", bound=JobMixin)


class Jobs(Bound, Generic[J]):
    """The jobs of one application, on its own metadata and in its own database.

    - `base`: any declarative base, Flask-SQLAlchemy's `db.Model`, or a `registry`. The models are mapped there
      immediately.
    - `job_class`: an unmapped subclass of `JobMixin` with your own columns. `Job` is then that class.
    - `schema`: the tables' schema; by default the metadata's, or else the connection's.
    - `prefix`: the prefix of the tables' names, such as `sqla_` for `sqla_jobs`, `sqla_runs` and so on; up to 31
      lower-case letters, digits and _.
    - `bind`: an engine or a session factory, as for `jobs.bind`. Workers connect with it. Enqueueing uses the caller's
      session and needs none. Several databases are given by name, as for `jobs.bind`.
    - `modules`: the names of the modules that declare tasks. Workers, clocks and commands import these modules; `Jobs`
      does not.
    - `encryption_keys`: Fernet keys for values of the type `Encrypted`, or a function that returns them. The first key
      encrypts, and each of them decrypts. By default the environment variable `SQLA_JOBS_KEYS` holds them, separated by
      commas. A function is called at each use, so let it return what it remembers.

    Raises `ConfigurationError` for an invalid base, for a table that the metadata already has, and for a `job_class`
    whose own column has the name of one of the library's columns, or is NOT NULL without a server default.
    """

    Job: type[J]
    Run: type[RunMixin]
    Schedule: type[ScheduleMixin]
    Tick: type[TickMixin]
    Process: type[ProcessMixin]
    Queue: type[QueueMixin]
    PausedTask: type[PausedTaskMixin]
    Limit: type[LimitMixin]
    Start: type[StartMixin]
    Audit: type[AuditMixin]
    Batch: type[BatchMixin]
    Edge: type[EdgeMixin]
    Step: type[StepMixin]
    Signal: type[SignalMixin]

    @overload
    def __init__(
        self: Jobs[JobMixin],
        base: type[Any] | registry,
        *,
        schema: str | None = None,
        prefix: str = "sqla_",
        bind: Bind | Mapping[str, Bind] | None = None,
        modules: Sequence[str] = (),
        encryption_keys: EncryptionKeys | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: Jobs[JT],
        base: type[Any] | registry,
        *,
        job_class: type[JT],
        schema: str | None = None,
        prefix: str = "sqla_",
        bind: Bind | Mapping[str, Bind] | None = None,
        modules: Sequence[str] = (),
        encryption_keys: EncryptionKeys | None = None,
    ) -> None: ...
    def __init__(
        self,
        base: type[Any] | registry,
        *,
        job_class: type[Any] = JobMixin,
        schema: str | None = None,
        prefix: str = "sqla_",
        bind: Bind | Mapping[str, Bind] | None = None,
        modules: Sequence[str] = (),
        encryption_keys: EncryptionKeys | None = None,
    ) -> None:
        if isinstance(modules, str):
            raise ConfigurationError(f"modules must be a list of module names, such as [{modules!r}], got {modules!r}")
        super().__init__()
        self._models: Models[J] = map_models(base, schema, prefix, job_class)
        name_only_what_is_set(self._models.tables["jobs"])
        self.Job = self._models.Job
        self.Run = self._models.Run
        self.Schedule = self._models.Schedule
        self.Tick = self._models.Tick
        self.Process = self._models.Process
        self.Queue = self._models.Queue
        self.PausedTask = self._models.PausedTask
        self.Limit = self._models.Limit
        self.Start = self._models.Start
        self.Audit = self._models.Audit
        self.Batch = self._models.Batch
        self.Edge = self._models.Edge
        self.Step = self._models.Step
        self.Signal = self._models.Signal
        self.tasks: Tasks[J] = Tasks(tuple(modules))
        self._keys: KeyRing = KeyRing(encryption_keys)
        tell_of_schedules(self.Schedule, self.Job, self._models.channel)
        tell_of_jobs(self.Job, self._models.channel)
        batches.watch_deletions(self._models)
        self.schedules: Schedules = Schedules()
        """The schedules that code declares; the clock stores them as rows."""
        self._hooks: Hooks = Hooks(self._context_in)
        """The functions called around workers and runs, at each enqueue and after each outcome."""
        self._counters: Counters = Counters()
        """The event counts of this process's workers. Counting starts only once the counts are needed."""
        if bind is not None:
            self.bind(bind)

    @property
    def _entity(self) -> type[J]:
        return self.Job

    @overload
    def task(self, target: Callable[C, R], /, **options: Unpack[TaskOptions]) -> Task[C, R, J]: ...
    @overload
    def task(self, /, **options: Unpack[TaskOptions]) -> Callable[[Callable[C, R]], Task[C, R, J]]: ...
    def task(self, target: Any = None, /, **options: Unpack[TaskOptions]) -> Any:
        """Register a function as a task. It becomes a `Task`, which is callable like the function.

        - `target`: the function, when used as `@jobs.task`. A lambda needs a `name=`.
        - `options`: `TaskOptions`, when used as `@jobs.task(name="mail.send", …)` or `jobs.task(send, name=…)`.

        Raises `DeclarationError` for an invalid signature or option, and for a name that another task already has.
        """
        if target is None:
            return partial(self._register, options=options)
        return self._register(target, options)

    def _register(self, target: Callable[..., Any], options: TaskOptions) -> Task[..., Any, J]:
        declared = declare(target, options, self.Job, self._keys)
        task: Task[..., Any, J] = Task(declared, self._models, self.schedules, self._hooks, self)
        self.tasks.add(task)
        return task

    def middleware(self, target: M, /) -> M:
        """Put a context manager around each run, in the run's thread. The first one declared is the outermost.

        - `target`: a function that takes the `RunContext` and returns a context manager, such as one decorated with
          `@contextmanager`. The function is returned. An `async def` decorated with `@asynccontextmanager` surrounds
          only coroutine tasks, inside their transaction and their asyncio task.

        Any exception from the run passes through the context manager, even a `Snooze` or a `Cancel`, and cannot be
        swallowed there. If the context manager raises before the run, the attempt ends with that error. An error raised
        after the run is logged.

        Raises `DeclarationError` for a generator, a coroutine function, and a function that takes other arguments.
        """
        return self._hooks.add_middleware(target)

    def worker_context(self, target: W, /) -> W:
        """Put a context manager around a worker's lifetime, in each of the worker's processes.

        - `target`: a function that takes no arguments and returns a context manager, such as one decorated with
          `@contextmanager` or `@asynccontextmanager`. The function is returned.

        Workers enter all contexts in the order of declaration before they claim the first job, and exit them in reverse
        order after the last job. Tasks find the yielded object by its type, as in `run.resources[httpx.Client]`. An
        asynchronous context is entered in the coroutine tasks' event loop. If a context raises on entry, the worker
        does not start.

        Raises `DeclarationError` for a generator, a coroutine function, and a function that takes arguments.
        """
        return self._hooks.add_worker_context(target)

    def headers(self, target: S, /) -> S:
        """Call `target` at each enqueue, once for `enqueue_many`, and store the returned headers with the jobs.

        - `target`: a function that takes no arguments and returns a mapping of names to strings, such as the request's
          id. The function is returned.

        `options(headers=…)` replaces headers of the same name. Schedules' jobs have no headers.

        Raises `DeclarationError` for a coroutine function, and for a function that takes arguments.
        """
        return self._hooks.add_source(target)

    @overload
    def on(self, event: Literal["enqueued"], /) -> Callable[[E], E]: ...  # type: ignore[overload-overlap]
    @overload
    def on(self, *events: EventName | RunOutcome) -> Callable[[H], H]: ...
    def on(self, *events: Any) -> Callable[[T], T]:
        """Call the decorated function with a `RunEvent` when an attempt has started, or its outcome has been stored.

        - `events`: `"started"`, and values of `RunOutcome` such as `"failed"`; or else `"enqueued"`.

        Handlers are called one by one, in one of the worker's threads. If a handler raises, its exception is logged. A
        slow handler delays the other handlers, but it does not delay jobs. `failed` and `lost` events are delivered at
        least once, even if the process dies first. The other events are delivered at most once.

        A handler of `"enqueued"` is called right after the commit of a transaction that has enqueued jobs, once for
        each task and queue, in the thread that commits. Its event has the `task`, the `queue`, and the `number` of new
        jobs.

        Raises `DeclarationError` for an unknown event, and for a handler that takes anything other than the event.
        """
        names = event_names(events)

        def add(target: T) -> T:
            return self._hooks.add_handler(target, names)

        return add

    def why(self, session: AnySession, job: J | int, /) -> list[str]:
        """Return the reasons why a job is waiting, one sentence each.

        The list has all reasons that the database shows. For a full limit, for example, it names the jobs that fill it.

        - `job`: the job, or its id. For a job that is running or has ended, one sentence states that.

        The call only reads, and does not wait for locks.

        Raises `UnknownJob` if there is no such job.
        """
        from sqla_jobs.monitoring.why import why

        with session_at(session, "jobs.why(session, job)", job) as own:
            return why(own, self, job)

    @overload
    def follow(self, job: J | int, /, *, timeout: float | None = None) -> Following[JobUpdate]: ...
    @overload
    def follow(self, batch: BatchMixin, /, *, timeout: float | None = None) -> Following[BatchCounts]: ...
    def follow(self, job: J | int | BatchMixin, /, *, timeout: float | None = None) -> Following[Any]:
        """Return a job's updates, to iterate over with `for` or `async for` until the job has ended.

        - `job`: the job, or its id; or a batch. The job or batch must be committed. A number is always taken as the
          id of a job: to name a batch by its id, load it with `session.get(jobs.Batch, id)`.
        - `timeout`: seconds until `TimeoutError`; by default there is no limit.

        Each update is a `JobUpdate`; the first one shows the current state. For a batch, each update is a
        `BatchCounts`. The last one comes when all jobs of the batch have ended; for a batch without jobs, it comes at
        once. A process uses one connection for all that it follows, and each change is seen within 0.3 s.

        The iteration raises `TimeoutError` after `timeout` seconds, and `UnknownJob` for a job or batch that does not
        exist, or has been deleted.
        """
        from sqla_jobs.following.follow import follow

        return follow(self._of(job)._binding().engine, self._models, job, timeout)

    @overload
    def wait(self, job: J | int, /, *, timeout: float | None = None) -> J: ...
    @overload
    def wait(self, batch: BatchMixin, /, *, timeout: float | None = None) -> BatchCounts: ...
    def wait(self, job: J | int | BatchMixin, /, *, timeout: float | None = None) -> J | BatchCounts:
        """Wait until a job has succeeded, and return it in that state, with its runs, detached from any session.

        - `job`: the job, or its id; or a batch. The job or batch must be committed. A number is always taken as the
          id of a job: to name a batch by its id, load it with `session.get(jobs.Batch, id)`.
        - `timeout`: seconds until `TimeoutError`; by default there is no limit.

        For a batch, wait until all its jobs have ended, whatever their outcomes, and return its `BatchCounts`.

        A task that waits for another job keeps its slot in the meantime. If such tasks have all slots, no job runs.

        Raises `JobFailed` if the job fails for good or is cancelled, and the errors that `follow` raises.
        """
        from sqla_jobs.following.follow import last_update, wait

        if isinstance(job, BatchMixin):
            return last_update(self.follow(job, timeout=timeout))
        return wait(self._of(job)._binding().engine, self._models, job, timeout)

    @overload
    async def wait_async(self, job: J | int, /, *, timeout: float | None = None) -> J: ...  # noqa: ASYNC109
    @overload
    async def wait_async(self, batch: BatchMixin, /, *, timeout: float | None = None) -> BatchCounts: ...  # noqa: ASYNC109
    async def wait_async(
        self,
        job: J | int | BatchMixin,
        /,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - as in `wait`
    ) -> J | BatchCounts:
        """Wait like `wait`, but in an event loop: other coroutines run in the meantime.

        - `job`, `timeout`: as for `wait`.

        Raises the same errors as `wait`.
        """
        from sqla_jobs.following.follow import last_update_async, wait_async

        if isinstance(job, BatchMixin):
            return await last_update_async(self.follow(job, timeout=timeout))
        return await wait_async(self._of(job)._binding().engine, self._models, job, timeout)

    def batch(self, session: AnySession, /, *, name: str = "") -> BatchMixin:
        """Add a batch to the caller's session. Jobs join it with `options(batch=…)`, and other jobs can run after it.

        - `name`: a human-readable text of at most 200 characters.

        Returns the batch, pending in the session. Jobs may join it in this transaction and in later ones, and its own
        jobs may add jobs to it. Once all its jobs have ended and a job after the batch could start, no more jobs can
        join it. A batch without jobs counts as ended.

        In a `ShardedSession`, the batch is added with the first job that joins it, in the shard of that job.

        Raises `ArgumentsError` for a name that cannot be stored.
        """
        own = any_session(session, "jobs.batch(session)")
        check_text("name", name)
        batch = self.Batch(name=name)
        if not is_sharded(own):
            own.add(batch)
        return batch

    def counts(self, session: AnySession, batch: BatchMixin, /) -> BatchCounts:
        """Return the number of the batch's jobs in each state, with its progress.

        - `batch`: a batch of this `Jobs`.

        Raises `ArgumentsError` for a batch that is not in the database.
        """
        with session_at(session, "jobs.counts(session, batch)", batch) as own:
            return batches.count(own, self._models, batch)

    def select(
        self,
        *,
        states: Sequence[str] = (),
        tasks: Sequence[str] = (),
        queues: Sequence[str] = (),
        batch: BatchMixin | int | None = None,
        args: Mapping[str, Any] | None = None,
        results: Mapping[str, Any] | None = None,
        error: str | None = None,
        text: str | None = None,
        created_before: datetime | timedelta | None = None,
        created_after: datetime | timedelta | None = None,
        ended_before: datetime | timedelta | None = None,
        ended_after: datetime | timedelta | None = None,
    ) -> Selection:
        """Return a selection of all jobs that match everything that is given, for `where=` of the changes below.

        - `states`, `tasks`, `queues`: names, of which a job has to match one.
        - `batch`: a batch that the database has, or its id.
        - `args`, `results`: stored values by name, at any depth of the arguments or of a run's result.
        - `error`: a part of the last run's error, in any case.
        - `text`: a part of the arguments, headers, unique key or progress, or of a run's result or error.
        - `created_before`, `created_after`, `ended_before`, `ended_after`: a datetime, or a timedelta before now.

        Raises `ArgumentsError` for a value that no job can have.
        """
        batch_id = batch if isinstance(batch, int) or batch is None else batches.saved_id(batch)
        return selected(
            states=states,
            tasks=tasks,
            queues=queues,
            batches=() if batch_id is None else (batch_id,),
            args=args or {},
            results=results or {},
            error=error,
            text=text,
            created_before=created_before,
            created_after=created_after,
            ended_before=ended_before,
            ended_after=ended_after,
        )

    def cancel(
        self,
        session: AnySession,
        job: J | int | BatchMixin | None = None,
        /,
        *,
        where: Selection | None = None,
        kill: bool = False,
    ) -> Changed:
        """Cancel jobs once the caller commits: a waiting job ends as `cancelled`; a running job is asked to stop.

        - `job`: a job, or its id; or a batch, which means its live jobs. A number is always taken as the id of a job.
        - `where`: instead of `job`, a selection by `jobs.select(…)`. Jobs that somebody holds are left alone.
        - `kill`: True makes a command-line worker kill its child process if the job does not stop within `--kill-after`
          seconds. Other jobs running in that process lose an attempt.

        Returns a `Changed`, which is false if no job was live.

        Raises `UnknownJob` if there is no such job.
        """
        return self._change(session, "cancel", Cancel(kill=kill), job, where)

    def retry(
        self,
        session: AnySession,
        job: J | int | BatchMixin | None = None,
        /,
        *,
        where: Selection | None = None,
        over: timedelta | float | None = None,
    ) -> Changed:
        """Once the caller commits, queue jobs that have ended, or that wait for their time or for other jobs.

        Each gets at least one more attempt. If it had ended, it waits again for the live jobs that it was enqueued
        after. If other jobs were cancelled because it had failed, they wait for it again.

        - `job`: a job, or its id; or a batch, which means its jobs that failed or that somebody cancelled. A number is
          always taken as the id of a job.
        - `where`: instead of `job`, a selection by `jobs.select(…)`. Without states, it means failed and cancelled
          jobs. Jobs that somebody holds are left alone.
        - `over`: a timedelta or seconds, over which the jobs become due, evenly, the oldest first.

        Returns a `Changed`. Left alone are a job that is queued or running, one whose unique key another live job has,
        and one whose arguments were erased.

        Raises `UnknownJob` if there is no such job, and `ArgumentsError` for an `over` that is no time.
        """
        return self._change(session, "retry", Retry(over), job, where)

    def move(
        self,
        session: AnySession,
        job: J | int | BatchMixin | None = None,
        /,
        *,
        where: Selection | None = None,
        queue: str | None = None,
        priority: int | None = None,
    ) -> Changed:
        """Once the caller commits, move waiting jobs to the end of another queue, or of another priority.

        - `job`, `where`: as for `cancel`.
        - `queue`, `priority`: what is given changes. Priorities are from -10 to 10; lower runs first.

        Returns a `Changed`. Only jobs that are scheduled or queued are moved.

        Raises `UnknownJob` if there is no such job, and `ArgumentsError` for a wrong queue or priority.
        """
        return self._change(session, "move", Alter(queue, priority), job, where)

    def reschedule(
        self,
        session: AnySession,
        job: J | int | BatchMixin | None = None,
        /,
        *,
        where: Selection | None = None,
        delay: timedelta | float | None = None,
        run_at: datetime | None = None,
    ) -> Changed:
        """Once the caller commits, let waiting jobs wait until another time.

        - `job`, `where`: as for `cancel`.
        - `delay`: a timedelta or seconds from now.
        - `run_at`: instead of `delay`, a datetime with a time zone, or `PARKED`.

        Returns a `Changed`. Only jobs that are scheduled or queued are rescheduled.

        Raises `UnknownJob` if there is no such job, and `ArgumentsError` for a wrong time.
        """
        if (delay is None) == (run_at is None):
            raise ArgumentsError("jobs.reschedule takes either delay= or run_at=: give one of them")
        when = run_at if delay is None else timedelta(seconds=check_seconds("delay", delay))
        return self._change(session, "reschedule", Alter(run_at=when), job, where)

    def delete(
        self, session: AnySession, job: J | int | BatchMixin | None = None, /, *, where: Selection | None = None
    ) -> Changed:
        """Delete jobs that are not running, with their runs, once the caller commits.

        - `job`, `where`: as for `cancel`. `where=jobs.select(ended_before=timedelta(days=30))` prunes: it leaves alone
          what a younger job of the same graph may need.

        Returns a `Changed`. Left alone are running jobs, and jobs to which application rows refer, unless the foreign
        key of those rows is ON DELETE CASCADE or SET NULL. Workers prune automatically.

        Raises `UnknownJob` if there is no such job.
        """
        return self._change(session, "delete", Delete(), job, where)

    def erase(
        self, session: AnySession, job: J | int | BatchMixin | None = None, /, *, where: Selection | None = None
    ) -> Changed:
        """Erase the arguments, results and errors of ended jobs once the caller commits. The rows stay.

        - `job`, `where`: as for `cancel`. `where=jobs.select(args={"customer": 17})` means one customer's jobs.

        Returns a `Changed`. Its `left` has the jobs that have not ended: erase them later, or cancel them first.

        Raises `UnknownJob` if there is no such job.
        """
        return self._change(session, "erase", Erase(), job, where)

    def _change(
        self, session: AnySession, name: str, change: Change, job: J | int | BatchMixin | None, where: Selection | None
    ) -> Changed:
        what = "where=…" if where else "batch" if isinstance(job, BatchMixin) else "job"
        said = f"jobs.{name}(session, {what})"
        if (job is None) == (where is None):
            got = "neither" if job is None else "both"
            raise ArgumentsError(
                f"jobs.{name} takes either a job, its id or a batch, or where=jobs.select(…), and got {got}"
            )
        with self._changing_at(session, said, job) as it:
            if isinstance(job, BatchMixin):
                batch_id = batches.id_of(it.session, self._models, job)
                return change.all(it, Selection(batches=(batch_id,)), waits=True)
            return change.one(it, job) if job is not None else change.all(it, where or Selection())

    def signal(self, session: AnySession, job: J | int, name: str, payload: object = None, /) -> bool:
        """Send a signal to a job, as part of the session's transaction. The job receives it with `run.wait_for`.

        If the job is waiting for the signal, it is queued, and the workers are notified once the transaction commits.
        Otherwise, the signal is kept until a run of the job asks for it. Several signals with one name are received one
        by one, in the order of their commits. To ensure this order, the transaction locks the job's row from now on.

        - `job`: a job or its id.
        - `name`: the signal's name, 1 to 200 characters.
        - `payload`: any value that pydantic can write as JSON, 1 MiB at most. `run.wait_for` reads it as a given type.

        Returns False for a job that has ended: it receives nothing.

        Raises `UnknownJob` if there is no such job, and `ArgumentsError` for a name or payload that cannot be stored.
        """
        with self._changing_at(session, "jobs.signal(session, job, name, payload)", job) as it:
            return signals.send(it, job, name, payload)

    def pause(
        self,
        session: AnySession,
        queue: str | None = None,
        /,
        *,
        task: TaskLike | None = None,
        reason: str | None = None,
        until: datetime | timedelta | None = None,
    ) -> None:
        """Stop all claims from a queue, or of a task in all queues, once the caller commits. Running jobs continue.

        - `queue`: the name of a queue.
        - `task`: instead of a queue, a task, its name or an alias. The pause applies to jobs under all of its names.
        - `reason`: human-readable text.
        - `until`: the time, by the server's clock, at which the pause ends by itself: a datetime with a time zone, or a
          timedelta from now. By default, the pause lasts until `resume` is called.

        A second pause keeps the first one's start time, and sets its own `reason` and `until`.

        Raises `ArgumentsError` unless exactly one of `queue` and `task` is given, and for an `until` in the past;
        `UnknownTask` for a name that no task has.
        """
        it = self._changing(session, f"jobs.pause(session, {'task=…' if queue is None else repr(queue):.60})")
        pausing.pause(it, queue, task=task, reason=reason, until=until)

    def resume(self, session: AnySession, queue: str | None = None, /, *, task: TaskLike | None = None) -> None:
        """Resume claims from a paused queue, or of a paused task, once the caller commits.

        - `queue`, `task`: as for `pause`.

        Raises the same errors as `pause`.
        """
        it = self._changing(session, f"jobs.resume(session, {'task=…' if queue is None else repr(queue):.60})")
        pausing.resume(it, queue, task=task)

    def set_limit(
        self,
        session: AnySession,
        which: TaskLike | None = None,
        /,
        *,
        queue: str | None = None,
        key: object = UNSET,
        running: int | None = None,
        rate: int | None = None,
        per: float | timedelta | None = None,
    ) -> None:
        """Override a declared limit, or set an undeclared one, once the caller commits.

        - `which`: a task, its name, or the name of a limit that tasks share.
        - `queue`: instead of `which`, the name of a queue. A queue can have only a `running` limit.
        - `key`: the only key to which the limit applies; by default, it applies to each key.
        - `running`: the number of simultaneous jobs, from 0 (no job starts) to 1,000,000.
        - `rate`: the number of starts that are allowed within `per`, from 0 to 10,000.
        - `per`: seconds or a timedelta, from 1 s to a day.

        Running jobs continue.

        Raises `ArgumentsError` for an invalid number, and for a target that does not exist.
        """
        target = limits.target(self.tasks, which, queue=queue, key=key)
        it = self._changing(
            session, f"jobs.set_limit(session, {'task' if queue is None else f'{queue=!r:.60}'}, running=…)"
        )
        limits.set_limit(it, target, running=running, rate=rate, per=per)

    def clear_limit(
        self,
        session: AnySession,
        which: TaskLike | None = None,
        /,
        *,
        queue: str | None = None,
        key: object = UNSET,
    ) -> bool:
        """Undo `set_limit` once the caller commits: the declared limit applies again, or no limit if none is declared.

        - `which`, `queue`, `key`: as for `set_limit`.

        Returns False if no limit was set.

        Raises `ArgumentsError` for a target that does not exist.
        """
        target = limits.target(self.tasks, which, queue=queue, key=key)
        it = self._changing(session, f"jobs.clear_limit(session, {'task' if queue is None else f'{queue=!r:.60}'})")
        return bool(limits.clear_limit(it, target))

    def spend(self, which: TaskLike, number: int = 1, /, *, key: object = UNSET, bind: Bind | None = None) -> bool:
        """Take `number` starts from the rate of a task or a shared limit, for work that is not a job.

        - `which`: a task, its name, or the name of a limit that tasks share.
        - `number`: the number of starts, from 1 to 10,000.
        - `key`: the key from whose rate the starts are taken, if each key has its own rate.
        - `bind`: the database; by default the one set with `bind`.

        Returns True if the starts were taken. They are taken in a separate transaction, and count for the next `per`
        seconds. Returns True, too, if no limit applies to the rate. If fewer than `number` starts are free now, none is
        taken, and False is returned.

        Raises `ArgumentsError` for an invalid number or target.
        """
        return limits.spend(self._binding(bind).engine, self._models, limits.target(self.tasks, which, key=key), number)

    def _changing(self, session: AnySession, said: str) -> Changing:
        return Changing(plain_session(session, said), self._models, self.tasks)

    @contextmanager
    def _changing_at(self, session: AnySession, said: str, row: object) -> Generator[Changing]:
        with session_at(session, said, row) as own:
            yield Changing(own, self._models, self.tasks)

    def worker(
        self,
        queues: Mapping[str, int] | Iterable[str] = ("default",),
        *,
        clock: bool = True,
        bind: Bind | None = None,
        shard: str | None = None,
        **options: Unpack[WorkerOptions],
    ) -> Worker:
        """Return a worker of one database, which is not started yet.

        - `queues`: a mapping from the names of queues to the number of jobs to run simultaneously, or names alone. All
          queues together run at most 5,000 jobs.
        - `clock`: True to also enqueue the jobs of schedules, as a `jobs.clock()` does. `drain` does not.
        - `bind`: an engine or a session factory; by default the one that the `Jobs` is bound to.
        - `shard`: the name of the database, if the `Jobs` is bound to several.
        - `options`: `WorkerOptions`.

        Raises `ConfigurationError` for an invalid setting, if no database is known, and if `shard` is missing.
        """
        from sqla_jobs.clock import Clock
        from sqla_jobs.worker import Settings, Worker

        own = self if shard is None else self.shard(shard)
        settings, binding = Settings.checked(queues, **options), own._binding(bind)
        beside = Clock.beside_worker(own, binding, settings) if clock else None
        return Worker(own, binding, settings, clock=beside)

    def clock(
        self, *, bind: Bind | None = None, shard: str | None = None, heartbeat: float = 5.0, lease: float = 30.0
    ) -> Clock:
        """Return a clock of one database, which enqueues a job for each tick of each schedule, however many clocks run.

        - `bind`, `shard`, `heartbeat`, `lease`: as for `worker`.

        Raises `ConfigurationError` for an invalid setting, if no database is known, and if `shard` is missing.
        """
        from sqla_jobs.clock import Clock

        own = self if shard is None else self.shard(shard)
        return Clock(own, own._binding(bind), heartbeat=heartbeat, lease=lease)
