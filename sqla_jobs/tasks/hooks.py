"""What an application has called around each run, at each enqueue, and after each outcome."""

from __future__ import annotations

import inspect
import logging
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
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
    """The start of an attempt at a job, or its stored outcome."""

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
    """The headers that were stored with the job when it was enqueued."""
    error_type: str | None = None
    """Name of the exception, or of the reason of a cancelled or lost attempt."""
    error: str | None = None
    """Its message, without the values of sensitive arguments."""
    retry_in: float | None = None
    """Seconds from the end of the attempt to the next one; None where none follows, or nobody knows when."""
    seconds: float = 0.0
    """The duration of the attempt, in seconds; 0 when it starts."""
    process_killed: bool = False
    """True if it overran its timeout and could not be interrupted, so that its process was killed."""


Middleware = Callable[[RunContext], AbstractContextManager[Any]]
HeaderSource = Callable[[], Mapping[str, str]]
Handler = Callable[[RunEvent], None]
M = TypeVar("M", bound=Middleware)
S = TypeVar("S", bound=HeaderSource)
H = TypeVar("H", bound=Handler)


class Hooks:
    """Those of one `Jobs`, in the order in which they were declared."""

    def __init__(self, context_in: Callable[[Session], Context]) -> None:
        self.context_in = context_in
        """Gives what is around each run of a test in a session, outside of the middleware."""
        self.middleware: list[Middleware] = []
        self.tracing: Tracing | None = None
        """Makes spans of enqueues and runs."""
        self.sources: list[HeaderSource] = []
        self._handlers: dict[str, list[Handler]] = {name: [] for name in EVENTS}

    def add_middleware(self, target: M) -> M:
        """Raises `DeclarationError` for what is no function of a `RunContext` that returns a context manager."""
        _check(target, "middleware", "one argument, the RunContext", 1)
        if inspect.isgeneratorfunction(target):
            raise DeclarationError(
                f"the middleware {_name(target)} is a generator: write @contextmanager between @jobs.middleware and it"
            )
        if inspect.isasyncgenfunction(inspect.unwrap(target)):
            raise DeclarationError(
                f"the middleware {_name(target)} is an asynchronous context manager: write "
                "@contextmanager and def in place of @asynccontextmanager and async def"
            )
        _replace_or_add(self.middleware, target)
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
                log.exception("the handler %s of %s, job %s, raised", _name(handler), event.name, event.job_id)

    def headers(self, given: Mapping[str, str] | None) -> dict[str, str]:
        """Those of a job that is enqueued now; `given` ones replace what sources add. Raises `ArgumentsError`."""
        found: dict[str, str] = {}
        for source in self.sources:
            found |= check_headers(source(), f"the headers of {_name(source)}")
        return check_headers(found | dict(given or {})) if found else dict(given or {})


def event_names(given: Iterable[object]) -> list[str]:
    """The names of events. Raises `DeclarationError` for an unknown one, and where there is none."""
    valid = f"valid events: {', '.join(EVENTS)}"
    chosen = list(given)
    if not chosen or callable(chosen[0]):
        above = f" above {_name(chosen[0])}" if chosen else ""
        raise DeclarationError(f"no event is named: write @jobs.on('failed'){above}; {valid}")
    if unknown := [name for name in chosen if name not in EVENTS]:
        raise DeclarationError(f"unknown event {unknown[0]!r:.60}; {valid}")
    return [str(name) for name in chosen]


def surroundings(middleware: Middleware, run: RunContext) -> AbstractContextManager[Any]:
    """The context manager of a middleware. Raises `ConfigurationError` where it returns none."""
    made: object = middleware(run)
    if isinstance(made, AbstractContextManager):
        return made
    raise ConfigurationError(
        f"the middleware {_name(middleware)} returned {made!r:.60}, which is no context manager: write "
        "@contextmanager between @jobs.middleware and a function with one yield"
    )


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


def _check(target: object, what: str, takes: str, arguments: int) -> None:
    if not callable(target) or isinstance(target, type):
        raise DeclarationError(f"a {what} must be a function of {takes}, got {target!r:.80}")
    if inspect.iscoroutinefunction(target) or inspect.isasyncgenfunction(target):
        raise DeclarationError(f"the {what} {_name(target)} is a coroutine function: write def instead of async def")
    try:
        inspect.signature(target).bind(*[None] * arguments)
    except TypeError:
        raise DeclarationError(f"the {what} {_name(target)} must take {takes}") from None


def _place(target: object) -> tuple[str, str] | None:
    """Where a function stands; None of a lambda, a method, or what else there may be several of."""
    name = getattr(target, "__qualname__", "<")
    is_bound = getattr(target, "__self__", None) is not None
    return None if "<" in name or is_bound else (target.__module__, name)


def _name(target: object) -> str:
    return str(getattr(target, "__qualname__", repr(target)))


def _replace_or_add(targets: list[Any], target: Any) -> None:
    """A function that is declared again, as by a reload, takes the place of the former."""
    for number, other in enumerate(targets):
        if other is target or (_place(target) is not None and _place(other) == _place(target)):
            targets[number] = target
            return
    targets.append(target)
