"""`Jobs`: one application's job models, tasks and database, and all the operations on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar, Unpack, overload

from sqlalchemy.orm import registry

from sqla_jobs.actions import batches
from sqla_jobs.actions.batches import BatchCounts
from sqla_jobs.database.binding import Bind
from sqla_jobs.database.notify import tell_of_jobs, tell_of_schedules
from sqla_jobs.database.sharding import is_sharded
from sqla_jobs.errors import ConfigurationError
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
from sqla_jobs.operations import Operations
from sqla_jobs.rules.outcomes import RunOutcome
from sqla_jobs.rules.value_checks import check_text
from sqla_jobs.runtime.counters import Counters
from sqla_jobs.tasks.declaration import TaskOptions, declare
from sqla_jobs.tasks.hooks import E, EventName, H, Hooks, M, S, W, event_names
from sqla_jobs.tasks.key_ring import EncryptionKeys, KeyRing
from sqla_jobs.tasks.registry import Tasks
from sqla_jobs.tasks.schedule import Schedules
from sqla_jobs.tasks.sessions import AnySession, any_session, session_at
from sqla_jobs.tasks.task import Task

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


class Jobs(Operations[J], Generic[J]):
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
