"""`Jobs`: one application's job models, tasks and database, and everything that is done with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, Unpack, overload

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

    `base` is any declarative base, Flask-SQLAlchemy's `db.Model`, or a `registry`; the models are mapped
    there at once, as tables named `prefix` + jobs, runs, schedules, ticks, processes, queues, paused_tasks, limits,
    starts, audit in `schema`. `tasks` names the modules that declare tasks: workers import them, this does not.
    `session_factory` (or an engine, or a later `bind`) is what workers connect with; enqueueing uses the
    caller's session and needs none. Raises `ConfigurationError`.
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
        """Set what workers, clocks and commands connect with.

        `bind` is an engine or a session factory of the database with these tables. Of an asynchronous one, the
        library makes a synchronous engine for itself and for plain tasks. `async_bind` is an `AsyncEngine` or makes
        the `AsyncSession`s of coroutine tasks; by default an engine is made of the address of `bind`. `context`
        returns a context manager: each run happens inside one, for which it is called with the `RunContext`, and so
        does whatever else opens a session, for which it is called with `None`. Raises `ConfigurationError`.
        """
        bound, async_bind = both_binds(bind, async_bind, self.Job)
        Binding(bound, self.Job, async_bind=async_bind)  # refuses what is neither
        self.bound, self._async_bind, self._context = bound, async_bind, context

    def binding(self, bind: Bind | None = None) -> Binding:
        """The database to work on: `bind`, else what was bound before. Raises `ConfigurationError`."""
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
        """Register a function, or a dataclass with `execute`, as a task. Raises `DeclarationError`.

        A function becomes a `Task`: still callable, and enqueued by `.enqueue(session, …)`. A class stays
        what it is, and its instances are enqueued by `jobs.enqueue(session, instance)`.
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

        `target` takes the `RunContext` and returns a context manager, as a function does under `@contextmanager`. What
        the run raises comes through it, also a `Snooze` or a `Cancel`, and goes on whether it swallows that or not. If
        it raises before the run, the attempt ends with that; what it raises afterwards is logged. An `async def` under
        `@asynccontextmanager` is around coroutine tasks alone: inside of their transaction, in their asyncio task.
        Raises `DeclarationError`.
        """
        return self.hooks.add_middleware(target)

    def worker_context(self, target: W, /) -> W:
        """Put a context manager around the life of a worker, in each of its processes.

        `target` takes nothing and returns a context manager, as a function does under `@contextmanager` or
        `@asynccontextmanager`. Workers enter all of them in the order of their declaration before they claim the first
        job, and leave them in reverse after the last job. Tasks find what it yields by its type, as
        `run.resources[httpx.Client]`. An asynchronous one is entered in the event loop of coroutine tasks. If one
        raises as it is entered, the worker does not start. Raises `DeclarationError`.
        """
        return self.hooks.add_worker_context(target)

    def headers(self, target: S, /) -> S:
        """Call `target` at each enqueue, once for `enqueue_many`, and give what it returns along with the jobs.

        It takes nothing and returns a mapping of names to texts, such as the id of the request. `options(headers=…)`
        replaces those of the same name. The jobs of schedules have none. Raises `DeclarationError`.
        """
        return self.hooks.add_source(target)

    def on(self, *events: EventName | RunOutcome) -> Callable[[H], H]:
        """Call the decorated function with a `RunEvent` when an attempt has started, or its outcome is stored.

        `events` are `started` and the values of `RunOutcome`. Handlers are called in a thread of the worker, one by
        one: what one raises is logged, and a slow one delays the other handlers and no job. Events of `failed` and
        `lost` are delivered at least once, also where the process dies before that. The others are delivered at most
        once. Raises `DeclarationError`.
        """
        names = event_names(events)

        def add(target: H) -> H:
            return self.hooks.add_handler(target, names)

        return add

    def enqueue(self, session: AnySession, instance: object, /, **options: Unpack[EnqueueOptions]) -> J:
        """Add a job for an instance of a task class to the caller's session, as `Task.enqueue` does."""
        if isinstance(instance, type):
            raise ArgumentsError(
                f"{instance.__qualname__} is a class: give an instance of it, with its arguments, such as "
                f"jobs.enqueue(session, {instance.__qualname__}(…))"
            )
        task = self.tasks.of_class(type(instance))
        own = plain_session(session, lambda: f"jobs.enqueue(session, {type(instance).__name__}(…))")
        return task.options(**options).enqueue(own, **task.declaration.signature.arguments_of(instance))

    def enqueue_many(
        self, session: AnySession, instances: Iterable[object], /, **options: Unpack[EnqueueOptions]
    ) -> Enqueued:
        """Add a job for each instance, in order, and return how many; all or nothing, in flat memory.

        Of unique tasks, `replaced` and `skipped` of that number count the instances whose key was taken.
        """

        own = plain_session(session, "jobs.enqueue_many(session, […])")

        def grouped() -> Iterator[Enqueued]:
            for kind, group in groupby(enumerate(instances), key=lambda item: type(item[1])):
                task = self.tasks.of_class(kind)
                arguments_of = task.declaration.signature.arguments_of
                numbered = ((number, arguments_of(instance)) for number, instance in group)
                yield task.options(**options).enqueue_numbered(own, numbered)

        with savepoint(own, self.Job):
            return Enqueued.total(grouped())

    def schedule(self, cron: str, instance: object, /, **options: Unpack[ScheduleOptions]) -> None:
        """Declare that a job for an instance of a task class is enqueued by a cron rule, as `Task.schedule` does."""
        if "args" in options:
            raise ArgumentsError("jobs.schedule takes the arguments from the instance: leave args= out")
        task = self.tasks.of_class(type(instance))
        options["args"] = task.declaration.signature.arguments_of(instance)
        task.schedule(cron, **options)

    def why(self, session: AnySession, job: J | int, /) -> list[str]:
        """Why a job waits, in sentences: every reason that the database knows, such as a full limit and who fills it.

        One sentence says of a job that runs or has ended that it does. Reads only, and waits for no lock. Raises
        `UnknownJob`.
        """
        from sqla_jobs.monitoring.why import why

        return why(plain_session(session, "jobs.why(session, job)"), self, job)

    def follow(self, job: J | int, /, *, timeout: float | None = None) -> Following:
        """The updates of a job, for `for` and `async for`: where it stands now, then each change, until it has ended.

        An update has `state`, `progress`, `progress_message`, and at last `result`, or `error_type` and `error`. The
        job must be committed. All jobs that are followed in a process share one connection that listens, beside one
        that reads them, at most twenty times a second. After `timeout` seconds it raises `TimeoutError`; for a job that
        is not there, or no more, `UnknownJob`.
        """
        from sqla_jobs.following.follow import follow

        return follow(self.binding().engine, self.models, job, timeout)

    def wait(self, job: J | int, /, *, timeout: float | None = None) -> J:
        """Wait until a job has succeeded, and return it as it is then, with its runs, outside of any session.

        Raises `JobFailed` where it fails for good or is cancelled, and what `follow` raises. A task that waits for
        another job holds its slot meanwhile: where all slots wait, nothing runs.
        """
        from sqla_jobs.following.follow import wait

        return wait(self.binding().engine, self.models, job, timeout)

    async def wait_async(self, job: J | int, /, *, timeout: float | None = None) -> J:  # noqa: ASYNC109 - as in `wait`
        """`wait` for an event loop: other coroutines run meanwhile."""
        from sqla_jobs.following.follow import wait_async

        return await wait_async(self.binding().engine, self.models, job, timeout)

    def cancel(self, session: AnySession, job: J | int, /, *, kill: bool = False) -> bool:
        """Cancel a job once the caller commits: a waiting one ends `cancelled`, a running one is asked to.

        With `kill`, a worker of the command line kills its child process if the job does not stop within
        `--kill-after` seconds. Other jobs that run there lose an attempt.
        Returns False where it had ended already. Raises `UnknownJob`.
        """
        return Cancel(kill=kill).one(self._changing(session, "jobs.cancel(session, job)"), job)

    def retry(self, session: AnySession, job: J | int, /) -> bool:
        """Queue a job that ended, or waits for its time, at once; it gets at least one attempt more.

        Returns False where it is queued or running. Raises `UnknownJob`, and `JobsError` where another
        live job has its unique key, or its arguments were erased.
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
        """Stop all claiming from `queue`, or of `task` in all queues, once the caller commits; what runs goes on.

        `task` is a task, its class, its name or an alias: jobs under all its names wait. `reason` is text for people.
        At `until`, a datetime with a time zone, or that long from now, claiming goes on by itself, by the server's
        clock. A second pause keeps the time of the first, with its own `reason` and `until`.
        Raises `ArgumentsError` unless one of `queue` and `task` is given, and for an `until` that has passed;
        `UnknownTask`.
        """
        it = self._changing(session, f"jobs.pause(session, {'task=…' if queue is None else repr(queue):.60})")
        pausing.pause(it, queue, task=task, reason=reason, until=until)

    def resume(self, session: AnySession, queue: str | None = None, /, *, task: TaskLike | None = None) -> None:
        """Claim from `queue`, or jobs of `task`, again once the caller commits. Raises as `pause` does."""
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
        """Override what code declares, from the caller's commit on: `running` at once, `rate` starts in `per`.

        `which` is a task, its name, or the name of a limit that tasks share; `queue` a queue, which takes `running`
        alone. With `key` it is one key's own limit. `running` is from 0 (nothing starts) to 1,000,000, `rate` from 0
        to 10,000, `per` seconds or a timedelta, from 1 s to a day. A task needs to declare no limit for it. What runs
        goes on. Raises `ArgumentsError`.
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
        """Take back what `set_limit` set, from the caller's commit on: what code declares applies again, or no limit.

        Returns False where nothing was set. The arguments are those of `set_limit`. Raises `ArgumentsError`.
        """
        target = limits.target(self.tasks, which, queue=queue, key=key)
        it = self._changing(session, f"jobs.clear_limit(session, {'task' if queue is None else f'{queue=!r:.60}'})")
        return bool(limits.clear_limit(it, target))

    def spend(self, which: TaskLike, number: int = 1, /, *, key: object = UNSET, bind: Bind | None = None) -> bool:
        """Take `number` starts from the rate of a task or of a shared limit, for something that is no job.

        True: they are taken, in a transaction of its own, and count for the next `per` seconds; also where nothing
        limits that rate. False: so many are not free now, and none is taken. Raises `ArgumentsError`.
        """
        return limits.spend(self.binding(bind).engine, self.models, limits.target(self.tasks, which, key=key), number)

    def prune(self, session: AnySession, /, *, older_than: timedelta | float) -> int:
        """Delete the jobs that ended `older_than` (a timedelta, or seconds) ago, and their runs; returns how many.

        All in the caller's transaction. Left alone are jobs that somebody holds locked, and those to which a row
        of the application refers, unless its foreign key says ON DELETE CASCADE or SET NULL. Runs that ended
        `older_than` ago, and whose job the application deleted itself, go too. Workers prune by themselves.
        Raises `ConfigurationError`.
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
        """A worker for `queues`: names with the number of jobs of each to run at once, or names alone.

        It beats every `heartbeat` seconds and is taken for dead after `lease`; it looks for work at least
        every `poll` seconds; when stopped, running jobs have `grace` seconds to end. The stack of a run that
        takes longer than `slow_after` seconds is logged. `timeout` is for tasks without one of their own. A coroutine
        that goes on for `kill_after` seconds after it was cancelled is abandoned.
        Jobs that ended are deleted after their `retention`, such
        as {"succeeded": timedelta(days=1), "failed": None}, None for never: by default 7 days, and 30 where failed;
        lines of the audit after that of "audit", by default a year; what became of ticks after that of "ticks", by
        default 30 days.
        Raises `ConfigurationError`.
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
        """A clock: enqueues a job for each tick of each schedule, exactly once however many clocks there are.

        It beats every `heartbeat` seconds and is taken for dead after `lease`. Raises `ConfigurationError`.
        """
        from sqla_jobs.clock import Clock

        return Clock(self, self.binding(bind), heartbeat=heartbeat, lease=lease)


def resolver_of(jobs: Jobs[Any]) -> Resolver | None:
    """What a framework integration set to resolve `bind=`; None where there is no integration."""
    return jobs._resolver  # pyright: ignore[reportPrivateUsage]


def set_resolver(jobs: Jobs[Any], resolver: Resolver) -> None:
    """Have `resolver` choose the database from now on, in place of what `Jobs.bind` was given."""
    jobs._resolver = resolver  # pyright: ignore[reportPrivateUsage]
