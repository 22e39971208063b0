"""The application's functions called around workers and runs, at each enqueue, and after each outcome."""

from __future__ import annotations

import inspect
import logging
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from sqlalchemy.orm import Session

from sqla_jobs.database.binding import Context
from sqla_jobs.errors import ArgumentsError, ConfigurationError, DeclarationError
from sqla_jobs.rules.outcomes import storable
from sqla_jobs.tasks.run_context import RunContext
from sqla_jobs.tasks.tracing import Tracing

log: logging.Logger = logging.getLogger("sqla_jobs.run")

EventName = Literal["started", "succeeded", "retried", "snoozed", "failed", "cancelled", "lost"]
EVENTS: tuple[str, ...] = get_args(EventName)
"""The events of attempts."""
_ENQUEUED = "enqueued"
_LONGEST_NAME, LONGEST = 100, 2_000
"""Maximum length of a header's name and of its value."""
_MOST = 50
"""Maximum number of headers per job."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEvent:
    """An event of an attempt at a job: its start, or its stored outcome."""

    name: EventName
    """`started`, or the stored outcome."""
    job_id: int
    """The id of the job, the same in each attempt."""
    run_id: int
    """The id of the row of `jobs.Run`; for `started`, the id that the row will have."""
    process_id: uuid.UUID | None
    """The id of the process that ran the attempt."""
    task: str
    """The name of the task, as stored with the job."""
    queue: str
    """The queue from which the job was claimed."""
    attempt: int
    """The number of this attempt, counted from 1."""
    max_attempts: int
    """The attempt after which a failure is final."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """The headers that were stored with the job when it was enqueued."""
    error_type: str | None = None
    """The name of the exception, or of the reason for a cancelled or lost attempt."""
    error: str | None = None
    """The message of the error, without the values of sensitive arguments."""
    retry_in: float | None = None
    """Seconds from the end of the attempt to the next one; None if no attempt follows, or if its time is unknown."""
    seconds: float = 0.0
    """The duration of the attempt, in seconds; 0 for `started`."""
    process_killed: bool = False
    """True if the attempt overran its timeout and could not be interrupted, so that its process was killed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnqueuedEvent:
    """A committed transaction has enqueued new jobs of one task in one queue."""

    name: Literal["enqueued"] = "enqueued"
    """The name of the event."""
    task: str
    """The name of the task."""
    queue: str
    """The queue of the jobs."""
    number: int
    """The number of new jobs."""


AnyContextManager = AbstractContextManager[Any] | AbstractAsyncContextManager[Any]
Middleware = Callable[[RunContext], AnyContextManager]
WorkerContext = Callable[[], AnyContextManager]
HeaderSource = Callable[[], Mapping[str, str]]
Handler = Callable[[RunEvent], None]
EnqueuedHandler = Callable[[EnqueuedEvent], None]
M = TypeVar("M", bound=Middleware)
S = TypeVar("S", bound=HeaderSource)
H = TypeVar("H", bound=Handler)
E = TypeVar("E", bound=EnqueuedHandler)
T = TypeVar("T")
W = TypeVar("W", bound=WorkerContext)


class Hooks:
    """The hooks of one `Jobs`, in the order of their declaration."""

    def __init__(self, context_in: Callable[[Session], Context]) -> None:
        self.context_in = context_in
        """Returns the context for each run in a test's session. The context surrounds the middleware, too."""
        self.middleware: list[Middleware] = []
        """Functions that return the context managers around runs. Asynchronous ones surround only coroutine tasks."""
        self.worker_contexts: list[WorkerContext] = []
        """Functions that return the context managers around the life of a worker, in each process."""
        self.tracing: Tracing | None = None
        """Makes spans for enqueues and runs."""
        self.sources: list[HeaderSource] = []
        self._handlers: dict[str, list[Callable[[Any], None]]] = {name: [] for name in (*EVENTS, _ENQUEUED)}

    def add_middleware(self, target: M) -> M:
        """Add a middleware. Raises `DeclarationError` unless it is a function that takes a `RunContext`."""
        _check_no_generator(target, "middleware", "@jobs.middleware")
        _check(target, "middleware", "one argument, the RunContext", 1)
        _replace_or_add(self.middleware, target)
        return target

    def add_worker_context(self, target: W) -> W:
        """Add a worker context. Raises `DeclarationError` for a generator, and for a function that takes arguments."""
        _check_no_generator(target, "worker context", "@jobs.worker_context")
        _check(target, "worker context", "no argument", 0)
        _replace_or_add(self.worker_contexts, target)
        return target

    def add_source(self, target: S) -> S:
        """Add a header source. Raises `DeclarationError` unless it is a function without arguments."""
        _check(target, "source of headers", "no argument", 0)
        _replace_or_add(self.sources, target)
        return target

    def add_handler(self, target: T, names: Iterable[str]) -> T:
        """Add an event handler. Raises `DeclarationError` unless it is a function that takes one argument."""
        _check(target, "event handler", "one argument, the event", 1)
        for name in names:
            _replace_or_add(self._handlers[name], target)
        return target

    def wanted(self, names: Collection[str] = EVENTS) -> list[str]:
        """Return the events among `names` that have a handler."""
        return [name for name in names if self._handlers[name]]

    def tell(self, event: RunEvent, *, caught: type[BaseException] = BaseException) -> None:
        """Call each handler of the event.

        If a handler raises, its exception is logged, and the other handlers are still called. An exception that is not
        of the class `caught` is raised immediately.
        """
        for handler in self._handlers[event.name]:
            try:
                handler(event)
            except caught:
                log.exception("the handler %s of %s, job %s, raised", name_of(handler), event.name, event.job_id)

    def tells_of_enqueued(self) -> bool:
        """Return whether a handler wants to know of new jobs."""
        return bool(self._handlers[_ENQUEUED])

    def tell_enqueued(self, where: tuple[str, str], number: int) -> None:
        """Call the handlers of "enqueued" with the number of new jobs of a task in a queue. Log their errors."""
        event = EnqueuedEvent(task=where[0], queue=where[1], number=number)
        for handler in self._handlers[_ENQUEUED]:
            try:
                handler(event)
            except Exception:
                log.exception("the handler %s of enqueued, task %s, raised", name_of(handler), event.task)

    def headers(self, given: Mapping[str, str] | None) -> dict[str, str]:
        """Return the headers of a new job. `given` overrides the headers from sources. Raises `ArgumentsError`."""
        found: dict[str, str] = {}
        for source in self.sources:
            found |= check_headers(source(), f"the headers of {name_of(source)}")
        return check_headers(found | dict(given or {})) if found else dict(given or {})


def event_names(given: Iterable[object]) -> list[str]:
    """Return the names of events. Raises `DeclarationError` for an unknown name, and for an empty list."""
    valid = f"valid events: {', '.join((*EVENTS, _ENQUEUED))}"
    chosen = list(given)
    if not chosen or callable(chosen[0]):
        above = f" above {name_of(chosen[0])}" if chosen else ""
        raise DeclarationError(f"no event is named: write @jobs.on('failed'){above}; {valid}")
    if unknown := [name for name in chosen if name not in (*EVENTS, _ENQUEUED)]:
        raise DeclarationError(f"unknown event {unknown[0]!r:.60}; {valid}")
    return [str(name) for name in chosen]


def is_asynchronous(target: Middleware | WorkerContext) -> bool:
    """Return whether a middleware or worker context is an asynchronous generator under `@asynccontextmanager`."""
    return inspect.isasyncgenfunction(inspect.unwrap(target))


def surroundings(middleware: Middleware, run: RunContext) -> AbstractContextManager[Any]:
    """Call a plain middleware and return its context manager. Raises `ConfigurationError` unless it returns one."""
    return plain_manager(middleware(run), middleware, "middleware")


def plain_manager(made: object, target: Middleware | WorkerContext, what: str) -> AbstractContextManager[Any]:
    """Return `made`, the return value of `target`. Raises `ConfigurationError` if it is not a context manager."""
    if isinstance(made, AbstractContextManager):
        return made
    raise _no_manager(made, target, what, "@contextmanager above a function with one yield")


def awaited_manager(made: object, target: Middleware | WorkerContext, what: str) -> AbstractAsyncContextManager[Any]:
    """Return `made`, the return value of `target`. Raises `ConfigurationError` if it is no async context manager."""
    if isinstance(made, AbstractAsyncContextManager):
        return made
    raise _no_manager(made, target, what, "@asynccontextmanager above an async def with one yield")


def _no_manager(made: object, target: object, what: str, remedy: str) -> ConfigurationError:
    if isinstance(made, AbstractAsyncContextManager):
        why, remedy = "an asynchronous context manager", "@asynccontextmanager above an async def with one yield"
    else:
        why = "no context manager"
    return ConfigurationError(f"the {what} {name_of(target)} returned {made!r:.60}, which is {why}: write {remedy}")


def check_headers(headers: object, name: str = "headers") -> dict[str, str]:
    """Return `headers` as a dict. Raises `ArgumentsError` unless it maps short texts to short texts."""
    if not isinstance(headers, Mapping) or len(headers) > _MOST:
        raise ArgumentsError(f"{name} must be a mapping of at most {_MOST} names to texts, got {headers!r:.60}")
    for key, value in headers.items():
        for text, longest in ((key, _LONGEST_NAME), (value, LONGEST)):
            if not isinstance(text, str) or text != storable(text, longest):
                raise ArgumentsError(
                    f"{name}: {key!r:.60} must be a text of at most {_LONGEST_NAME} characters, and its value one "
                    f"of at most {LONGEST}, without NUL and surrogates, got {value!r:.60}"
                )
    return dict(headers)


def _check_no_generator(target: object, what: str, decorator: str) -> None:
    for is_it, remedy in (
        (inspect.isgeneratorfunction, "@contextmanager"),
        (inspect.isasyncgenfunction, "@asynccontextmanager"),
    ):
        if is_it(target):
            raise DeclarationError(
                f"the {what} {name_of(target)} is a generator: write {remedy} between {decorator} and it"
            )


def _check(target: object, what: str, takes: str, arguments: int) -> None:
    if not callable(target) or isinstance(target, type):
        raise DeclarationError(f"a {what} must be a function of {takes}, got {target!r:.80}")
    if inspect.iscoroutinefunction(target) or inspect.isasyncgenfunction(target):
        raise DeclarationError(f"the {what} {name_of(target)} is a coroutine function: write def instead of async def")
    try:
        inspect.signature(target).bind(*[None] * arguments)
    except TypeError:
        raise DeclarationError(f"the {what} {name_of(target)} must take {takes}") from None


def _place(target: object) -> tuple[str, str] | None:
    """Return the module and name of a function; None for a lambda, a method or a local function."""
    name = getattr(target, "__qualname__", "<")
    is_bound = getattr(target, "__self__", None) is not None
    return None if "<" in name or is_bound else (target.__module__, name)


def name_of(target: object) -> str:
    """Return the name of a function, for messages."""
    return str(getattr(target, "__qualname__", repr(target)))


def _replace_or_add(targets: list[Any], target: Any) -> None:
    """Add a function. If it is declared again, as by a reload, replace its earlier version."""
    for number, other in enumerate(targets):
        if other is target or (_place(target) is not None and _place(other) == _place(target)):
            targets[number] = target
            return
    targets.append(target)
