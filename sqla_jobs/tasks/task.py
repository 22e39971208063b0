"""A task: a function or class under a stable name, that can be called and enqueued."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from types import MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

from sqlalchemy.orm import Session

from sqla_jobs.database.commits import check_open
from sqla_jobs.database.notify import after_commit
from sqla_jobs.database.subscribers import LIMITS
from sqla_jobs.errors import ArgumentsError
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.tasks.context import RunContext
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.tasks.described import DescribedEnqueue, enqueue
from sqla_jobs.tasks.enqueue import EnqueueOptions, add_many, add_one, check_options, expressed, job_values
from sqla_jobs.tasks.enqueued import Enqueued
from sqla_jobs.tasks.hooks import Hooks
from sqla_jobs.tasks.schedule import ScheduleOptions, Schedules
from sqla_jobs.tasks.sessions import AnySession, plain_session
from sqla_jobs.tasks.tracing import UNTRACED, Sending
from sqla_jobs.tasks.unique import UniqueRule
from sqla_jobs.tasks.unique_jobs import add_many_unique, add_unique, rule_for

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

C = ParamSpec("C")
P = ParamSpec("P")
E = TypeVar("E", bound=Callable[..., Any])  # or mypy takes what the result of the call is assigned to
E_co = TypeVar("E_co", covariant=True)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S", bound="Session | AsyncSession")
T = TypeVar("T")
J = TypeVar("J", bound=JobMixin)
J_co = TypeVar("J_co", bound=JobMixin, covariant=True)


class Enqueue(Protocol[P, J_co]):
    """What `task.enqueue` is: a session, then the arguments of the task without those that are injected."""

    def __call__(self, session: AnySession, /, *args: P.args, **kwargs: P.kwargs) -> J_co:
        """Add a job to the caller's session; it exists if and only if the caller's transaction commits.

        Returns the job, pending like any object that was added. One with a unique key is in the database
        already, or it is the live job of that key. Raises `ArgumentsError` for arguments that
        do not fit, and `JobExists` where the `Unique` says so, having changed nothing.
        """
        ...


class _Nobody:
    """Only what takes anything takes one: `Any` comes first, or the task is known by its name alone."""


class _Injected(Protocol[C, E_co]):
    def without_injected(self, target: Callable[C, object], /) -> E_co: ...


class _EnqueueOf(Generic[C]):
    """Chooses among the overloads where `task.enqueue` is looked up, so that a call has one signature to fit.

    If `enqueue` itself were overloaded, a wrong call would be tried on each overload in turn, and fit
    the last, for which what is injected are arguments like any other. (mypy moreover does not
    compare the types that stand before a ParamSpec when it chooses by the type of `self`.)
    """

    @overload
    def __get__(self, enqueuer: None, owner: object = None, /) -> Callable[..., JobMixin]: ...
    @overload
    def __get__(self, enqueuer: _Injected[C, E], owner: object = None, /) -> E: ...
    def __get__(self, enqueuer: _Injected[C, E] | None, owner: object = None, /) -> Any:
        if enqueuer is None:
            return enqueue
        return enqueuer.without_injected(lambda *_, **__: None)  # of interest to type checkers alone


class Enqueuer(Generic[C, J]):
    """Enqueues one task with some options; what `options()` returns, and what a `Task` is."""

    enqueue: _EnqueueOf[C] = _EnqueueOf()

    def __init__(
        self,
        declaration: Declaration,
        models: Models[J],
        options: Mapping[str, Any],
        described: DescribedEnqueue,
        hooks: Hooks,
    ) -> None:
        self._declaration = declaration
        self._models = models
        self._options = options
        self._hooks = hooks
        self._described = described
        self._unique = rule_for(declaration, options)

    @property
    def declaration(self) -> Declaration:
        """How the task was declared."""
        return self._declaration

    @property
    def models(self) -> Models[J]:
        """The classes of which its jobs are rows."""
        return self._models

    @property
    def hooks(self) -> Hooks:
        """What is around its runs and enqueues."""
        return self._hooks

    @property
    def chosen(self) -> Mapping[str, Any]:
        """The options that were given, checked."""
        return self._options

    @property
    def unique(self) -> UniqueRule | None:
        """How its jobs are unique; `None` where they are not."""
        return self._unique

    @property
    def written(self) -> str:
        """How code names it, for messages."""
        declaration = self._declaration
        is_class = isinstance(declaration.signature.target, type)
        name = f"jobs.tasks[{declaration.name!r}]" if is_class else declaration.signature.target.__name__
        return f"{name}.options(…)" if self._options else name

    @overload
    def without_injected(self, target: Callable[Concatenate[_Nobody, ...], object], /) -> Enqueue[..., J]: ...
    @overload
    def without_injected(self, target: Callable[Concatenate[S, RunContext, P], object], /) -> Enqueue[P, J]: ...
    @overload
    def without_injected(self, target: Callable[Concatenate[S, P], object], /) -> Enqueue[P, J]: ...
    @overload
    def without_injected(self, target: Callable[Concatenate[RunContext, P], object], /) -> Enqueue[P, J]: ...
    @overload
    def without_injected(self, target: Callable[P, object], /) -> Enqueue[P, J]: ...
    def without_injected(self, target: Callable[..., object], /) -> Enqueue[..., J]:
        """How `enqueue` is called for a task of this kind."""
        return MethodType(self._described.function, self)

    def add(self, session: AnySession | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> J:
        """Add a job to the caller's session; what `enqueue` does."""
        if not isinstance(session, Session):
            session = plain_session(session, lambda: self._call(args, kwargs))
        if self._hooks.tracing is None:
            return self._add(session, args, kwargs)[0]
        with self._sending(session) as sending:
            added, inserted = self._add(session, args, kwargs)
            sending.one(added, inserted)
        return added

    def _add(self, session: Session, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[J, int]:
        """The job, and how many were inserted: 1 or 0."""
        declaration, unique = self._declaration, self._unique
        check_open(session, self._models.Job)
        given = self.bind(args, kwargs)
        if unique is None:
            stored = declaration.codec.stored(session, given)
            added = add_one(session, self._models, self._with_headers(self.columns), stored, declaration.make_gates), 1
        else:
            item = unique.keyed(declaration.codec.encode(session, given))
            values = self._with_headers(self._values)
            added = add_unique(session, self._models, values, item, unique, declaration.make_gates)
        after_commit(session, self._models.Job, self._models.channel, self._message)
        return added

    def enqueue_many(self, session: AnySession, arguments: Iterable[Mapping[str, Any]], /) -> Enqueued:
        """Add a job for each mapping of arguments, in order, and return how many jobs that were.

        - `session`: the `Session` or `scoped_session` of the caller. The jobs are inserted at once, in its
          transaction, and exist if and only if that commits.
        - `arguments`: any iterable of mappings from the names of the task's arguments to their values. Memory stays
          flat, also with millions.

        Of a unique task (or with `options(unique=…)`), an item whose key is taken is left out, replaces or updates the
        job that waits, or raises `JobExists`; within the call too. The number that is returned counts inserted jobs;
        its `replaced` and `skipped` count the others.

        Raises `ArgumentsError` for an item that does not fit the task, and names its position; also for
        `options(unique_key=…)`. After an error nothing of this call stays in the transaction.
        """
        return self.enqueue_numbered(session, enumerate(arguments))

    def enqueue_numbered(self, session: AnySession, arguments: Iterable[tuple[int, Mapping[str, Any]]], /) -> Enqueued:
        """The same, where each mapping comes with the number that an error is to name it by."""
        into = plain_session(session, lambda: f"{self.written}.enqueue_many(session, […])")
        declaration, unique = self._declaration, self._unique

        def each(convert: Callable[[bytes], T]) -> Iterator[T]:
            for number, values in arguments:
                if not isinstance(values, Mapping):
                    raise ArgumentsError(f"item {number} must be a mapping of arguments, got {type(values).__name__}")
                try:
                    yield convert(declaration.codec.encode(into, self.bind((), dict(values))))
                except ArgumentsError as error:
                    raise ArgumentsError(f"item {number}: {error}") from None

        with self._sending(into) as sending:
            if unique is None:
                columns = self._with_headers(self.columns)
                count = add_many(into, self._models, columns, each(bytes), declaration.make_gates)
            elif "unique_key" in self._options:
                raise ArgumentsError(
                    "enqueue_many takes no unique_key: at most one of its jobs could be enqueued; "
                    "give a Unique, which makes a key of the arguments of each"
                )
            else:
                values = self._with_headers(self._values)
                count = add_many_unique(into, self._models, values, each(unique.keyed), unique, declaration.make_gates)
            after_commit(into, self._models.Job, self._models.channel, self._message)
            sending.many(count)
        return count

    def _call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """The call of `enqueue`, for messages, with the arguments by name."""
        parameters = self._declaration.signature.arguments.parameters.values()
        given = {one.name for one in [*parameters][: len(args)]} | kwargs.keys()
        named = [f", {one.name}=…" for one in parameters if one.name in given or one.default is one.empty]
        return f"{self.written}.enqueue(session{''.join(named)})"

    def _sending(self, session: Session) -> AbstractContextManager[Sending, None]:
        if (tracing := self._hooks.tracing) is None:
            return UNTRACED
        queue = self._options.get("queue", self._declaration.defaults["queue"])
        return tracing.sending(session, self._models.Job, self._declaration.name, queue)

    @cached_property
    def columns(self) -> Mapping[str, Any]:
        """Column values of its jobs, without their arguments and what is made of these."""
        return expressed(self._values)

    @cached_property
    def _values(self) -> Mapping[str, Any]:
        return job_values(self._declaration.name, self._declaration.defaults, self._options)

    @cached_property
    def _message(self) -> str:
        """What workers are told of after a commit."""
        return str(self._values["queue"]) + LIMITS * bool(self._declaration.gates)

    def _with_headers(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same, with the headers of this moment."""
        if not self._hooks.sources and "headers" not in self._options:
            return values
        headers = self._hooks.headers(self._options.get("headers"))
        return {**values, "headers": headers} if headers else values

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the task by name. Raises `ArgumentsError` where they are not its arguments."""
        required, names = self._declaration.signature.by_name
        if not args and required <= kwargs.keys() <= names:
            return kwargs  # inspect would take fifteen times as long over it
        try:
            return self._declaration.signature.bind(self._declaration.name, args, kwargs)
        except ArgumentsError as error:
            raise self.unknown(kwargs) or error from None

    def unknown(self, kwargs: Mapping[str, Any]) -> ArgumentsError | None:
        """The error about the first name that is no argument of the task; `None` where all are."""
        task, parameters = self._declaration.name, self._declaration.signature.arguments.parameters
        name = min(kwargs.keys() - parameters.keys(), default=None)
        if name is None:
            return None
        if name in EnqueueOptions.__annotations__:
            return ArgumentsError(
                f"{task} has no argument {name!r}; it is an option: {task}.options({name}=…).enqueue(session, …)"
            )
        return ArgumentsError(
            f"{task} got an unexpected keyword argument {name!r}; it takes: {', '.join(parameters) or 'none'}"
        )


class Task(Enqueuer[C, J], Generic[C, R_co, J]):
    """A registered function. Call it to run it here and now, or enqueue it."""

    def __init__(
        self, declaration: Declaration, models: Models[J], schedules: Schedules, hooks: Hooks, waits: _Waits[J]
    ) -> None:
        super().__init__(declaration, models, {}, DescribedEnqueue(declaration, models.Job), hooks)
        self._schedules = schedules
        self._waits = waits
        self.__name__: str = declaration.signature.qualname.rpartition(".")[2]
        self.__qualname__ = declaration.signature.qualname
        self.__module__ = declaration.signature.module
        self.__doc__ = declaration.signature.target.__doc__
        self.__wrapped__: Callable[..., Any] = declaration.signature.target

    @property
    def name(self) -> str:
        """The name stored with each of its jobs."""
        return self._declaration.name

    def __call__(self, *args: C.args, **kwargs: C.kwargs) -> R_co:
        """A plain call, in this process."""
        return cast("R_co", self.__wrapped__(*args, **kwargs))

    def options(self, **options: Unpack[EnqueueOptions]) -> Enqueuer[C, J]:
        """The same task, to be enqueued with these options. Each left out, or None, is as the task was declared.

        - `delay`: a timedelta, or seconds, from now by the server's clock; up to 100 years.
        - `run_at`: a datetime with a time zone; the job is not run before. `PARKED` never comes by itself.
        - `queue`: the name of a queue, 1 to 200 printable characters without = and ,.
        - `priority`: from -10 to 10, lower runs first.
        - `max_attempts`: from 1 to 1,000,000.
        - `unique_key`: text of 1 to 500 characters. At most one live job (scheduled, queued or running) has this key;
          enqueueing returns that job where there is one, unless the policy says otherwise.
        - `unique`: a `Unique`, the policy. Without `unique_key` it also makes the key.
        - `headers`: a mapping of at most 50 names to texts, which middleware and the `RunContext` show.
        - `columns`: a mapping of names to values, for the columns of your own `job_class`.

        Raises `ArgumentsError` for an option that does not exist, and for a value that no job can have.
        """
        checked = check_options(self._models.Job, options)
        return Enqueuer(self._declaration, self._models, checked, self._described, self._hooks)

    @overload
    def result(self: Task[..., Coroutine[Any, Any, T], J], job: J | int, /, *, timeout: float | None = None) -> T: ...
    @overload
    def result(self, job: J | int, /, *, timeout: float | None = None) -> R_co: ...
    def result(self, job: J | int, /, *, timeout: float | None = None) -> Any:
        """What the task returned for a job, as a value of the return type of the task. Waits until the job has ended.

        Raises `JobFailed` where the job fails for good or is cancelled, `TimeoutError` after `timeout` seconds,
        `UnknownJob` where there is none, and `ArgumentsError` where it is a job of another task, or where what is
        stored does not fit the return type.
        """
        ended = self._waits.wait(job, timeout=timeout)
        return self._declaration.result_of(ended)

    @overload
    async def result_async(
        self: Task[..., Coroutine[Any, Any, T], J],
        job: J | int,
        /,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - as in `result`
    ) -> T: ...
    @overload
    async def result_async(self, job: J | int, /, *, timeout: float | None = None) -> R_co: ...  # noqa: ASYNC109
    async def result_async(self, job: J | int, /, *, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        """`result` for an event loop: other coroutines run meanwhile."""
        ended = await self._waits.wait_async(job, timeout=timeout)
        return self._declaration.result_of(ended)

    def schedule(self, cron: str, /, **options: Unpack[ScheduleOptions]) -> None:
        """Declare that the task is enqueued by a cron rule. Workers and clocks make a row of it in the database.

        - `cron`: five fields such as `30 2 * * *`, six with seconds first, or what `sqla_jobs.cron.every` returns.
        - `name`: the name of the row, by default the task's. Another name makes another schedule.
        - `timezone`: an IANA name such as "Europe/Paris"; by default UTC.
        - `args`: a mapping of the task's arguments to their values.
        - `queue`, `priority`: of its jobs; by default those of the task.
        - `catch_up`: which ticks fire that nobody was there for: "skip" none, "latest" (the default) the newest, "all"
          of them, the oldest first, 100 at most.
        - `overlap`: whether a tick fires while an earlier tick's job has not ended: "allow" (the default) or "skip".
        - `jitter`: a timedelta, or seconds, up to a day. Each job is due up to that much after its tick.
        - `enabled`: False declares it disabled.

        An operator may change the row, and code does not take that back. Raises `ConfigurationError` for a rule, a
        time zone or an option's value that cannot be; `ArgumentsError` for arguments that do not fit the task;
        `DeclarationError` for an option that does not exist, and for a name that another task's schedule has.
        """
        self._schedules.declare(self._declaration, cron, self.bind((), dict(options.get("args", {}))), options)

    def __repr__(self) -> str:
        return f"<Task {self.name} of {self.__module__}.{self.__qualname__}>"


class _Waits(Protocol[J]):
    def wait(self, job: J | int, /, *, timeout: float | None = None) -> J: ...

    async def wait_async(self, job: J | int, /, *, timeout: float | None = None) -> J: ...  # noqa: ASYNC109


TaskLike = Task[..., Any, Any] | type[Any] | str
"""A task that is a function, the class of one, or its name."""


class TaskDecorator(Protocol[J]):
    """What `@jobs.task(…)` returns."""

    @overload
    def __call__(self, target: type[T], /) -> type[T]: ...  # type: ignore[overload-overlap]  # a class is callable too
    @overload
    def __call__(self, target: Callable[C, R], /) -> Task[C, R, J]: ...
