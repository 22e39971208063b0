"""The application's code around each worker and each run, at each enqueue, and after each outcome."""

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
from sqla_jobs.tasks.context import RunContext
from sqla_jobs.tasks.tracing import Tracing

log: logging.Logger = logging.getLogger("sqla_jobs.run")

EventName = Literal["started", "succeeded", "retried", "snoozed", "failed", "cancelled", "lost"]
EVENTS: tuple[str, ...] = get_args(EventName)
_LONGEST_NAME, LONGEST = 100, 2_000
"""Characters of a header's name and of its value."""
_MOST = 50
"""Headers of a job."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEvent:
    """What has become of an attempt at a job."""

    name: EventName
    """`started`, or the outcome that is stored."""
    job_id: int
    """The id of the job, the same in each attempt."""
    run_id: int
    """The id of the row of `jobs.Run`; of `started` the id that it will have."""
    process_id: uuid.UUID | None
    """The process that ran it."""
    task: str
    """The name of the task, as it is stored with the job."""
    queue: str
    """The queue from which the job was claimed."""
    attempt: int
    """The number of this attempt, from 1."""
    max_attempts: int
    """The attempt after which a failure is final."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """What was given along with the job when it was enqueued."""
    error_type: str | None = None
    """Name of the exception, or of the reason of a cancelled or lost attempt."""
    error: str | None = None
    """Its message, without the values of sensitive arguments."""
    retry_in: float | None = None
    """Seconds from the end of the attempt to the next one; None where none follows, or nobody knows when."""
    seconds: float = 0.0
    """How long the attempt ran."""
    process_killed: bool = False
    """Whether it overran its timeout and could not be interrupted, so that its process was killed."""


AnyContextManager = AbstractContextManager[Any] | AbstractAsyncContextManager[Any]
Middleware = Callable[[RunContext], AnyContextManager]
WorkerContext = Callable[[], AnyContextManager]
HeaderSource = Callable[[], Mapping[str, str]]
Handler = Callable[[RunEvent], None]
M = TypeVar("M", bound=Middleware)
S = TypeVar("S", bound=HeaderSource)
H = TypeVar("H", bound=Handler)
W = TypeVar("W", bound=WorkerContext)


class Hooks:
    """Those of one `Jobs`, in the order in which they were declared."""

    def __init__(self, context_in: Callable[[Session], Context]) -> None:
        self.context_in = context_in
        """Gives what is around each run of a test in a session, outside of the middleware."""
        self.middleware: list[Middleware] = []
        """Around each run. Asynchronous ones are around the runs of coroutine tasks alone."""
        self.worker_contexts: list[WorkerContext] = []
        """Around the life of a worker, in each process."""
        self.tracing: Tracing | None = None
        """Makes spans of enqueues and runs."""
        self.sources: list[HeaderSource] = []
        self._handlers: dict[str, list[Handler]] = {name: [] for name in EVENTS}

    def add_middleware(self, target: M) -> M:
        """Raises `DeclarationError` for what is no function of a `RunContext` that returns a context manager."""
        _check_no_generator(target, "middleware", "@jobs.middleware")
        _check(target, "middleware", "one argument, the RunContext", 1)
        _replace_or_add(self.middleware, target)
        return target

    def add_worker_context(self, target: W) -> W:
        """Raises `DeclarationError` for what is no function without arguments that returns a context manager."""
        _check_no_generator(target, "worker context", "@jobs.worker_context")
        _check(target, "worker context", "no argument", 0)
        _replace_or_add(self.worker_contexts, target)
        return target

    def add_source(self, target: S) -> S:
        """Raises `DeclarationError` for what is no function without arguments."""
        _check(target, "source of headers", "no argument", 0)
        _replace_or_add(self.sources, target)
        return target

    def add_handler(self, target: H, names: Iterable[str]) -> H:
        """Raises `DeclarationError` for what is no function of a `RunEvent`."""
        _check(target, "event handler", "one argument, the RunEvent", 1)
        for name in names:
            _replace_or_add(self._handlers[name], target)
        return target

    def wanted(self, names: Collection[str] = EVENTS) -> list[str]:
        """The events among `names` that anybody handles."""
        return [name for name in names if self._handlers[name]]

    def tell(self, event: RunEvent, *, caught: type[BaseException] = BaseException) -> None:
        """Call each handler of the event. What one raises is logged, and the others are called all the same.

        What is not `caught` is raised at once.
        """
        for handler in self._handlers[event.name]:
            try:
                handler(event)
            except caught:
                log.exception("the handler %s of %s, job %s, raised", name_of(handler), event.name, event.job_id)

    def headers(self, given: Mapping[str, str] | None) -> dict[str, str]:
        """Those of a job that is enqueued now; `given` ones replace what sources add. Raises `ArgumentsError`."""
        found: dict[str, str] = {}
        for source in self.sources:
            found |= check_headers(source(), f"the headers of {name_of(source)}")
        return check_headers(found | dict(given or {})) if found else dict(given or {})


def event_names(given: Iterable[object]) -> list[str]:
    """The names of events. Raises `DeclarationError` for an unknown one, and where there is none."""
    valid = f"valid events: {', '.join(EVENTS)}"
    chosen = list(given)
    if not chosen or callable(chosen[0]):
        above = f" above {name_of(chosen[0])}" if chosen else ""
        raise DeclarationError(f"no event is named: write @jobs.on('failed'){above}; {valid}")
    if unknown := [name for name in chosen if name not in EVENTS]:
        raise DeclarationError(f"unknown event {unknown[0]!r:.60}; {valid}")
    return [str(name) for name in chosen]


def is_asynchronous(target: Middleware | WorkerContext) -> bool:
    """Return whether a middleware or worker context is an asynchronous generator under `@asynccontextmanager`."""
    return inspect.isasyncgenfunction(inspect.unwrap(target))


def surroundings(middleware: Middleware, run: RunContext) -> AbstractContextManager[Any]:
    """Return the context manager of a plain middleware. Raises `ConfigurationError` if it returns none."""
    return plain_manager(middleware(run), middleware, "middleware")


def plain_manager(made: object, target: Middleware | WorkerContext, what: str) -> AbstractContextManager[Any]:
    """Return `made`, which `target` has returned. Raises `ConfigurationError` if it is no context manager."""
    if isinstance(made, AbstractContextManager):
        return made
    raise _no_manager(made, target, what, "@contextmanager above a function with one yield")


def awaited_manager(made: object, target: Middleware | WorkerContext, what: str) -> AbstractAsyncContextManager[Any]:
    """Return `made`, which `target` has returned. Raises `ConfigurationError` if it is no asynchronous one."""
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
    """The same as a dict. Raises `ArgumentsError` for what is no mapping of short texts to short texts."""
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
    """Where a function stands; None of a lambda, a method, or what else there may be several of."""
    name = getattr(target, "__qualname__", "<")
    is_bound = getattr(target, "__self__", None) is not None
    return None if "<" in name or is_bound else (target.__module__, name)


def name_of(target: object) -> str:
    """Return the name of a function, for messages."""
    return str(getattr(target, "__qualname__", repr(target)))


def _replace_or_add(targets: list[Any], target: Any) -> None:
    """A function that is declared again, as by a reload, takes the place of the former."""
    for number, other in enumerate(targets):
        if other is target or (_place(target) is not None and _place(other) == _place(target)):
            targets[number] = target
            return
    targets.append(target)
