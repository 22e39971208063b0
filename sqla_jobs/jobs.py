"""`Jobs`: one application's job models, tasks and database, and everything that is done with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, Protocol, TypeVar, Unpack, overload

from sqlalchemy.orm import Session, registry

from sqla_jobs.actions import limits, pausing
from sqla_jobs.actions.audit import Changing
from sqla_jobs.actions.jobs import Cancel, Retry
from sqla_jobs.actions.limits import UNSET
from sqla_jobs.actions.pruning import prune_jobs
from sqla_jobs.database.async_sessions import AsyncBind
from sqla_jobs.database.binding import Bind, Binding, Context, SyncBind, both_binds
from sqla_jobs.database.commits import savepoint
from sqla_jobs.database.notify import tell_of_jobs, tell_of_schedules
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
from sqla_jobs.rules.outcomes import RunOutcome
from sqla_jobs.rules.retention import KEPT, Retention
from sqla_jobs.runtime.counters import Counters
from sqla_jobs.tasks.context import RunContext
from sqla_jobs.tasks.declaration import TaskOptions, declare
from sqla_jobs.tasks.enqueue import EnqueueOptions
from sqla_jobs.tasks.enqueued import Enqueued
from sqla_jobs.tasks.hooks import EventName, H, Hooks, M, S, W, event_names
from sqla_jobs.tasks.registry import Tasks
from sqla_jobs.tasks.schedule import ScheduleOptions, Schedules
from sqla_jobs.tasks.sessions import AnySession, plain_session
from sqla_jobs.tasks.task import Task, TaskDecorator, TaskLike

if TYPE_CHECKING:
    from sqla_jobs.clock import Clock
    from sqla_jobs.following.follow import Following
    from sqla_jobs.worker import Worker

C = ParamSpec("C")
R = TypeVar("R")
T = TypeVar("T")
J = TypeVar("J", bound=JobMixin)
JT = TypeVar("JT", bound=JobMixin)


class Resolver(Protocol):
    """Resolves `bind=` to a database; framework integrations set one."""

    def __call__(self, bind: Bind | None, /) -> Binding: ...

    def context_in(self, session: Session, /) -> Context:
        """What surrounds the runs of a test in this session."""
        ...


class Jobs(Generic[J]):
    """The jobs of one application, on its own metadata and in its own database.

    - `base`: any declarative base, Flask-SQLAlchemy's `db.Model`, or a `registry`. The models are mapped there at once.
    - `job_class`: a subclass of `JobMixin` with columns of your own, left unmapped. `Job` is that class then.
    - `schema`: the schema of the tables; by default that of the metadata, or the connection's.
    - `prefix`: the beginning of the tables' names, before jobs, runs, schedules, ticks, processes, queues,
      paused_tasks, limits, starts and audit; up to 31 lower-case letters, digits and _.
    - `tasks`: the names of the modules that declare tasks. Workers, clocks and commands import them, this does not.
    - `session_factory`: an engine or a session factory, as for `bind`. Workers connect with it. Enqueueing uses the
      caller's session and needs none.

    Raises `ConfigurationError` for what is no base, for a table that the metadata already has, and for columns of
    `job_class` that are named like those of the library, or NOT NULL without a server default.
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

    @overload
    def __init__(
        self: Jobs[JobMixin],
        base: type[Any] | registry,
        *,
        schema: str | None = None,
        prefix: str = "sqla_",
        tasks: Sequence[str] = (),
        session_factory: Bind | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: Jobs[JT],
        base: type[Any] | registry,
        *,
        job_class: type[JT],
        schema: str | None = None,
        prefix: str = "sqla_",
        tasks: Sequence[str] = (),
        session_factory: Bind | None = None,
    ) -> None: ...
    def __init__(
        self,
        base: type[Any] | registry,
        *,
        job_class: type[Any] = JobMixin,
        schema: str | None = None,
        prefix: str = "sqla_",
        tasks: Sequence[str] = (),
        session_factory: Bind | None = None,
    ) -> None:
        if isinstance(tasks, str):
            raise ConfigurationError(f"tasks must be a list of module names, such as [{tasks!r}], got {tasks!r}")
        self.models: Models[J] = map_models(base, schema, prefix, job_class)
        name_only_what_is_set(self.models.tables["jobs"])
        self.Job = self.models.Job
        self.Run = self.models.Run
        self.Schedule = self.models.Schedule
        self.Tick = self.models.Tick
        self.Process = self.models.Process
        self.Queue = self.models.Queue
        self.PausedTask = self.models.PausedTask
        self.Limit = self.models.Limit
        self.Start = self.models.Start
        self.Audit = self.models.Audit
        self.tasks: Tasks[J] = Tasks(tuple(tasks))
        tell_of_schedules(self.Schedule, self.Job, self.models.channel)
        tell_of_jobs(self.Job, self.models.channel)
        self.schedules: Schedules = Schedules()
        """What code declares; the clock makes rows of it."""
        self.hooks: Hooks = Hooks(self.context_in)
        """What is called around workers and runs, at each enqueue and after each outcome."""
        self.counters: Counters = Counters()
        """What workers of this process count, once somebody wants it."""
        self.bound: SyncBind | None = None
        """What was given by `session_factory=` or `bind`."""
        self._async_bind: AsyncBind | None = None
        self._context: Context | None = None
        self._resolver: Resolver | None = None
        if session_factory is not None:
            self.bind(session_factory)

    def bind(
        self,
        bind: Bind,
        *,
        async_bind: AsyncBind | None = None,
        context: Callable[[RunContext | None], AbstractContextManager[Any]] | None = None,
    ) -> None:
        """Set the database that workers, clocks and commands connect to.

        - `bind`: an engine or a session factory of the database with these tables. Of an asynchronous one, the library
          makes a synchronous engine for itself and for plain tasks.
        - `async_bind`: an `AsyncEngine`, or a factory of the `AsyncSession`s of coroutine tasks. By default an engine
          is made of the address of `bind`.
        - `context`: a function that returns a context manager. Each run happens inside one, for which it is called with
          the `RunContext`; so does whatever else opens a session, for which it is called with `None`.

        Raises `ConfigurationError` for what is no engine and no session factory, and for one of another database than
        PostgreSQL.
        """
        bound, async_bind = both_binds(bind, async_bind, self.Job)
        Binding(bound, self.Job, async_bind=async_bind)  # refuses what is neither
        self.bound, self._async_bind, self._context = bound, async_bind, context

    def binding(self, bind: Bind | None = None) -> Binding:
        """Return the database to work on.

        - `bind`: an engine or a session factory; by default what was bound before.

        Raises `ConfigurationError` if there is none.
        """
        if self._resolver is not None:
            return self._resolver(bind)
        chosen, async_bind = self.bound, self._async_bind
        if bind is not None:
            chosen, async_bind = both_binds(bind, None, self.Job)
        if chosen is None:
            raise ConfigurationError(
                "no database is known: call jobs.bind(engine), or give Jobs(…, session_factory=…), "
                "or --database-url or DATABASE_URL on the command line; where an application binds it, name that one, "
                "such as shop:create_app()"
            )
        return Binding(chosen, self.Job, context=self._context, async_bind=async_bind)

    def context_in(self, session: Session) -> Context:
        """What a test puts around its runs, which are in this session: what a worker puts around each run."""
        return self._resolver.context_in(session) if self._resolver is not None else self._context or nullcontext

    @property
    def is_bound(self) -> bool:
        """Whether a database was given, or an application that has one."""
        return self.bound is not None or self._resolver is not None

    @overload
    def task(self, target: type[T], /) -> type[T]: ...  # type: ignore[overload-overlap]  # a class is callable too
    @overload
    def task(self, target: Callable[C, R], /) -> Task[C, R, J]: ...
    @overload
    def task(self, /, **options: Unpack[TaskOptions]) -> TaskDecorator[J]: ...
    def task(self, target: Any = None, /, **options: Unpack[TaskOptions]) -> Any:
        """Register a function, or a dataclass with `execute`, as a task.

        A function becomes a `Task`: still callable, and enqueued by `.enqueue(session, …)`. A class stays
        what it is, and its instances are enqueued by `jobs.enqueue(session, instance)`.

        - `target`: the function or class, where it is used as `@jobs.task`.
        - `options`: `TaskOptions`, where it is used as `@jobs.task(name="mail.send", …)`.

        Raises `DeclarationError` for a signature or an option that no task can have, and for a name that another task
        has.
        """
        if target is None:
            return partial(self._register, options=options)
        return self._register(target, options)

    def _register(self, target: Any, options: TaskOptions) -> Any:
        declared = declare(target, options, self.Job)
        task: Task[..., Any, J] = Task(declared, self.models, self.schedules, self.hooks, self)
        self.tasks.add(task)
        return target if isinstance(target, type) else task

    def middleware(self, target: M, /) -> M:
        """Put a context manager around each run, in the thread of the run; the first that is declared is the outermost.

        - `target`: a function that takes the `RunContext` and returns a context manager, such as one under
          `@contextmanager`. It is returned. An `async def` under `@asynccontextmanager` surrounds coroutine tasks only,
          inside their transaction and their asyncio task.

        Whatever the run raises passes through it, even a `Snooze` or a `Cancel`, and it cannot swallow that. If it
        raises before the run, the attempt ends with that error. An error raised after the run is logged.

        Raises `DeclarationError` for a generator, a coroutine function, and one that takes something else.
        """
        return self.hooks.add_middleware(target)

    def worker_context(self, target: W, /) -> W:
        """Put a context manager around the life of a worker, in each of its processes.

        - `target`: a function that takes nothing and returns a context manager, such as one under `@contextmanager` or
          `@asynccontextmanager`. It is returned.

        Workers enter all contexts in the order of their declaration before they claim the first job, and leave them in
        reverse order after the last job. Tasks find the yielded object by its type, as `run.resources[httpx.Client]`.
        An asynchronous context is entered in the event loop of coroutine tasks. If a context raises as it is entered,
        the worker does not start.

        Raises `DeclarationError` for a generator, a coroutine function, and a function that takes something.
        """
        return self.hooks.add_worker_context(target)

    def headers(self, target: S, /) -> S:
        """Call `target` at each enqueue, once for `enqueue_many`, and store the headers that it returns with the jobs.

        - `target`: a function that takes nothing and returns a mapping of names to texts, such as the id of the
          request. It is returned.

        `options(headers=…)` replaces headers of the same name. The jobs of schedules have none.

        Raises `DeclarationError` for a coroutine function, and for one that takes something.
        """
        return self.hooks.add_source(target)

    def on(self, *events: EventName | RunOutcome) -> Callable[[H], H]:
        """Call the decorated function with a `RunEvent` when an attempt has started, or its outcome is stored.

        - `events`: `"started"`, and values of `RunOutcome` such as `"failed"`.

        Handlers are called in a thread of the worker, one by one: what one raises is logged, and a slow one delays the
        other handlers and no job. Events of `failed` and `lost` are delivered at least once, also where the process
        dies before that. The others are delivered at most once.

        Raises `DeclarationError` for an unknown event, and for a handler that takes anything but the event.
        """
        names = event_names(events)

        def add(target: H) -> H:
            return self.hooks.add_handler(target, names)

        return add

    def enqueue(self, session: AnySession, instance: object, /, **options: Unpack[EnqueueOptions]) -> J:
        """Add a job for an instance of a task class to the caller's session, as `task.enqueue` does for a function.

        - `instance`: an instance of a class under `@jobs.task`; its fields are the arguments.
        - `options`: `EnqueueOptions`.

        Returns the job, pending in the session.

        Raises `UnknownTask` for an instance of another class; `ArgumentsError` for arguments or options that do not
        fit; `JobExists` where its `Unique` says so.
        """
        if isinstance(instance, type):
            raise ArgumentsError(
                f"{instance.__qualname__} is a class: give an instance of it, with its arguments, such as "
                f"jobs.enqueue(session, {instance.__qualname__}(…))"
            )
        task = self.tasks.of_class(type(instance))
        own = plain_session(session, lambda: f"jobs.enqueue(session, {type(instance).__name__}(…))")
        return task.options(**options).enqueue(own, **task.declaration.signature.arguments_of(instance))

    @overload
    def enqueue_many(
        self,
        session: AnySession,
        instances: Iterable[object],
        /,
        *,
        returning: Literal[False] = False,
        **options: Unpack[EnqueueOptions],
    ) -> Enqueued: ...
    @overload
    def enqueue_many(
        self,
        session: AnySession,
        instances: Iterable[object],
        /,
        *,
        returning: Literal[True],
        **options: Unpack[EnqueueOptions],
    ) -> list[int]: ...
    def enqueue_many(
        self,
        session: AnySession,
        instances: Iterable[object],
        /,
        *,
        returning: bool = False,
        **options: Unpack[EnqueueOptions],
    ) -> Enqueued | list[int]:
        """Add a job for each instance, in order, and return how many; all or nothing, in flat memory.

        - `instances`: any iterable of instances of classes under `@jobs.task`.
        - `returning`: True returns the ids of the jobs, in the order of the instances. If a key is taken, it is the id
          of the job that has the key.
        - `options`: `EnqueueOptions`, for all of them.

        Returns an `Enqueued`: for unique tasks, its `replaced` and `skipped` count the instances whose key was taken.

        Raises what `enqueue` raises; an `ArgumentsError` names the position of the instance.
        """
        ids: list[int] | None = [] if returning else None
        own = plain_session(session, "jobs.enqueue_many(session, […])")

        def grouped() -> Iterator[Enqueued]:
            for kind, group in groupby(enumerate(instances), key=lambda item: type(item[1])):
                task = self.tasks.of_class(kind)
                arguments_of = task.declaration.signature.arguments_of
                numbered = ((number, arguments_of(instance)) for number, instance in group)
                yield task.options(**options).enqueue_numbered(own, numbered, ids)

        with savepoint(own, self.Job):
            count = Enqueued.total(grouped())
        return count if ids is None else ids

    def schedule(self, cron: str, instance: object, /, **options: Unpack[ScheduleOptions]) -> None:
        """Declare that a job for an instance of a task class is enqueued by a cron rule, as `task.schedule` does.

        - `cron`: the rule, as for `task.schedule`.
        - `instance`: an instance of a class under `@jobs.task`; its fields are the arguments.
        - `options`: `ScheduleOptions`, without `args`.

        Raises what `task.schedule` raises, and `UnknownTask` for an instance of another class.
        """
        if "args" in options:
            raise ArgumentsError("jobs.schedule takes the arguments from the instance: leave args= out")
        task = self.tasks.of_class(type(instance))
        options["args"] = task.declaration.signature.arguments_of(instance)
        task.schedule(cron, **options)

    def why(self, session: AnySession, job: J | int, /) -> list[str]:
        """Return why a job waits, in sentences: each reason that the database knows, such as a full limit and by whom.

        - `job`: the job, or its id. For one that runs or has ended, one sentence says that.

        Reads only, and waits for no lock.

        Raises `UnknownJob` if there is no such job.
        """
        from sqla_jobs.monitoring.why import why

        return why(plain_session(session, "jobs.why(session, job)"), self, job)

    def follow(self, job: J | int, /, *, timeout: float | None = None) -> Following:
        """Return the updates of a job, for `for` and `async for`: its state now, then each change, until it has ended.

        - `job`: the job, or its id. It must be committed.
        - `timeout`: seconds until `TimeoutError`; by default it waits for ever.

        Each is a `JobUpdate`. All jobs that are followed in a process share one connection that listens, and one that
        reads them, at most twenty times a second.

        Raises `TimeoutError`, and `UnknownJob` for a job that is not there, or no longer, while it is iterated.
        """
        from sqla_jobs.following.follow import follow

        return follow(self.binding().engine, self.models, job, timeout)

    def wait(self, job: J | int, /, *, timeout: float | None = None) -> J:
        """Wait until a job has succeeded, and return it as it is then, with its runs, outside of any session.

        - `job`: the job, or its id. It must be committed.
        - `timeout`: seconds until `TimeoutError`; by default it waits for ever.

        A task that waits for another job holds its slot meanwhile: if all slots wait, nothing runs.

        Raises `JobFailed` if it fails for good or is cancelled, and what `follow` raises.
        """
        from sqla_jobs.following.follow import wait

        return wait(self.binding().engine, self.models, job, timeout)

    async def wait_async(self, job: J | int, /, *, timeout: float | None = None) -> J:  # noqa: ASYNC109 - as in `wait`
        """Wait as `wait` does, in an event loop: other coroutines run meanwhile.

        - `job`, `timeout`: as for `wait`.

        Raises what `wait` raises.
        """
        from sqla_jobs.following.follow import wait_async

        return await wait_async(self.binding().engine, self.models, job, timeout)

    def cancel(self, session: AnySession, job: J | int, /, *, kill: bool = False) -> bool:
        """Cancel a job once the caller commits: a waiting one ends `cancelled`, a running one is asked to stop.

        - `job`: the job, or its id.
        - `kill`: True has a worker of the command line kill its child process if the job does not stop within
          `--kill-after` seconds. Other jobs that run there lose an attempt.

        Returns False if it had ended already.

        Raises `UnknownJob` if there is no such job.
        """
        return Cancel(kill=kill).one(self._changing(session, "jobs.cancel(session, job)"), job)

    def retry(self, session: AnySession, job: J | int, /) -> bool:
        """Queue a job that ended, or waits for its time, once the caller commits; it gets at least one attempt more.

        - `job`: the job, or its id.

        Returns False if it is queued or running.

        Raises `UnknownJob` if there is no such job, and `JobsError` if another live job has its unique key, or its
        arguments were erased.
        """
        return Retry().one(self._changing(session, "jobs.retry(session, job)"), job)

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
        - `task`: in its place, a task, its class, its name or an alias. Jobs under all its names wait.
        - `reason`: text for people.
        - `until`: a datetime with a time zone, or a timedelta from now, at which claims begin again by themselves, by
          the server's clock. By default somebody has to `resume`.

        A second pause keeps the time of the first, with its own `reason` and `until`.

        Raises `ArgumentsError` unless one of `queue` and `task` is given, and for an `until` that has passed;
        `UnknownTask` for a name that no task has.
        """
        it = self._changing(session, f"jobs.pause(session, {'task=…' if queue is None else repr(queue):.60})")
        pausing.pause(it, queue, task=task, reason=reason, until=until)

    def resume(self, session: AnySession, queue: str | None = None, /, *, task: TaskLike | None = None) -> None:
        """Allow claims from a paused queue, or of a paused task, once the caller commits.

        - `queue`, `task`: as for `pause`.

        Raises what `pause` raises.
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
        """Override a declared limit, or set one that no code declares, from the caller's commit on.

        - `which`: a task, its name, or the name of a limit that tasks share.
        - `queue`: in its place, the name of a queue, which takes `running` alone.
        - `key`: sets the limit of this one key.
        - `running`: the number of jobs at once, from 0 (nothing starts) to 1,000,000.
        - `rate`, `per`: the number of starts, from 0 to 10,000, in `per` seconds or a timedelta, from 1 s to a day.

        Running jobs continue.

        Raises `ArgumentsError` for a number that no limit can have, and for a target that does not exist.
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
        """Remove a limit that `set_limit` set, from the caller's commit on: the declared limit applies again, or none.

        - `which`, `queue`, `key`: as for `set_limit`.

        Returns False if none was set.

        Raises `ArgumentsError` for a target that does not exist.
        """
        target = limits.target(self.tasks, which, queue=queue, key=key)
        it = self._changing(session, f"jobs.clear_limit(session, {'task' if queue is None else f'{queue=!r:.60}'})")
        return bool(limits.clear_limit(it, target))

    def spend(self, which: TaskLike, number: int = 1, /, *, key: object = UNSET, bind: Bind | None = None) -> bool:
        """Take `number` starts from the rate of a task or of a shared limit, for something that is no job.

        - `which`: a task, its name, or the name of a limit that tasks share.
        - `number`: the number of starts, from 1 to 10,000.
        - `key`: the key from whose rate they are taken, if each key has its own.
        - `bind`: the database; by default the one that `bind` was given.

        Returns True if they are taken, in a transaction of its own: they count for the next `per` seconds. Also True
        if nothing limits that rate. Returns False, and takes none, if so many are not free now.

        Raises `ArgumentsError` for a number or a target that cannot be.
        """
        return limits.spend(self.binding(bind).engine, self.models, limits.target(self.tasks, which, key=key), number)

    def prune(self, session: AnySession, /, *, older_than: timedelta | float) -> int:
        """Delete old jobs that ended, and their runs, in the caller's transaction; return how many jobs.

        - `older_than`: a timedelta, or seconds, since they ended.

        Jobs that another session has locked stay, and so do those to which a row of the application refers, unless its
        foreign key says ON DELETE CASCADE or SET NULL. Old runs whose job the application deleted itself go too.
        Workers prune by themselves.

        Raises `ConfigurationError` for what is no length of time.
        """
        own = plain_session(session, "jobs.prune(session, older_than=…)")
        return prune_jobs(own, self.models, older_than=older_than)

    def _changing(self, session: AnySession, said: str) -> Changing:
        return Changing(plain_session(session, said), self.models, self.tasks)

    def worker(
        self,
        queues: Mapping[str, int] | Iterable[str] = ("default",),
        *,
        concurrency: int = 8,
        bind: Bind | None = None,
        heartbeat: float = 5.0,
        lease: float = 30.0,
        poll: float = 1.0,
        grace: float = 30.0,
        slow_after: float = 300.0,
        timeout: float | timedelta | None = None,
        kill_after: float = 10.0,
        retention: Retention = KEPT,
    ) -> Worker:
        """Return a worker, which has not started yet. All times are seconds.

        - `queues`: names of queues with the number of jobs of each to run at once, or names alone. All queues together
          run up to 5,000 jobs.
        - `concurrency`: the number of jobs at once of each queue that is named alone.
        - `bind`: an engine or a session factory; by default what the `Jobs` is bound to.
        - `heartbeat`: the time between two heartbeats.
        - `lease`: the time without a heartbeat after which it is taken for dead; at least three times `heartbeat`.
        - `poll`: the longest time between two looks for jobs that no notification announced.
        - `grace`: the time that running jobs have to end when it is stopped.
        - `slow_after`: the time after which the stack of a run is logged.
        - `timeout`: a timedelta, or seconds: the timeout of tasks without one of their own. By default none.
        - `kill_after`: the time after a cancellation until a coroutine that has not ended is abandoned.
        - `retention`: the time after which rows are deleted, such as `{"succeeded": timedelta(days=1), "failed":
          None}`; None keeps them. By default 7 days for succeeded and cancelled jobs, 30 for failed ones and for
          "ticks", and 365 for "audit".

        Raises `ConfigurationError` for a setting that cannot be, and if no database is known.
        """
        from sqla_jobs.worker import Settings, Worker

        settings = Settings.checked(
            queues,
            concurrency=concurrency,
            heartbeat=heartbeat,
            lease=lease,
            poll=poll,
            grace=grace,
            slow_after=slow_after,
            timeout=timeout,
            kill_after=kill_after,
            retention=retention,
        )
        return Worker(self, self.binding(bind), settings)

    def clock(self, *, bind: Bind | None = None, heartbeat: float = 5.0, lease: float = 30.0) -> Clock:
        """Return a clock, which enqueues a job for each tick of each schedule, once however many clocks there are.

        - `bind`: an engine or a session factory; by default what the `Jobs` is bound to.
        - `heartbeat`, `lease`: as for `worker`.

        Raises `ConfigurationError` for a setting that cannot be, and if no database is known.
        """
        from sqla_jobs.clock import Clock

        return Clock(self, self.binding(bind), heartbeat=heartbeat, lease=lease)


def resolver_of(jobs: Jobs[Any]) -> Resolver | None:
    """What a framework integration set to resolve `bind=`; None where there is no integration."""
    return jobs._resolver  # pyright: ignore[reportPrivateUsage]


def set_resolver(jobs: Jobs[Any], resolver: Resolver) -> None:
    """Have `resolver` choose the database from now on, in place of what `Jobs.bind` was given."""
    jobs._resolver = resolver  # pyright: ignore[reportPrivateUsage]
