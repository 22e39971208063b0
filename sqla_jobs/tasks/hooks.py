"""The application's middleware, header sources and event handlers."""

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
"""Maximum length of a header's name and of its value."""
_MOST = 50
"""Maximum number of headers of a job."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEvent:
    """The start or the outcome of an attempt, for event handlers."""

    name: EventName
    """`started`, or the stored outcome."""
    job_id: int
    """The id of the job, the same in each attempt."""
    run_id: int
    """The id of the row of `jobs.Run`; for `started` its future id."""
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
    """The headers that were stored with the job."""
    error_type: str | None = None
    """The name of the exception, or of the reason for a cancelled or lost attempt."""
    error: str | None = None
    """The message of the error, without the values of sensitive arguments."""
    retry_in: float | None = None
    """Seconds from the end of the attempt to the next one; None if there is none, or if its time is unknown."""
    seconds: float = 0.0
    """Seconds that the attempt ran."""
    process_killed: bool = False
    """True if the process was killed, since the attempt overran its timeout and could not be interrupted."""


Middleware = Callable[[RunContext], AbstractContextManager[Any]]
HeaderSource = Callable[[], Mapping[str, str]]
Handler = Callable[[RunEvent], None]
M = TypeVar("M", bound=Middleware)
S = TypeVar("S", bound=HeaderSource)
H = TypeVar("H", bound=Handler)


class Hooks:
    """The hooks of one `Jobs`, in the order of their declaration."""

    def __init__(self, context_in: Callable[[Session], Context]) -> None:
        self.context_in = context_in
        """Returns the context around each run of a test in a session, outside the middleware."""
        self.middleware: list[Middleware] = []
        self.tracing: Tracing | None = None
        """Makes spans of enqueues and runs."""
        self.sources: list[HeaderSource] = []
        self._handlers: dict[str, list[Handler]] = {name: [] for name in EVENTS}

    def add_middleware(self, target: M) -> M:
        """Add a middleware. Raises `DeclarationError` unless it is a function of a `RunContext`."""
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
        """Add a source of headers. Raises `DeclarationError` unless it is a function without arguments."""
        _check(target, "source of headers", "no argument", 0)
        _replace_or_add(self.sources, target)
        return target

    def add_handler(self, target: H, names: Iterable[str]) -> H:
        """Add an event handler. Raises `DeclarationError` unless it is a function of a `RunEvent`."""
        _check(target, "event handler", "one argument, the RunEvent", 1)
        for name in names:
            _replace_or_add(self._handlers[name], target)
        return target

    def wanted(self, names: Collection[str] = EVENTS) -> list[str]:
        """Return the events among `names` that have a handler."""
        return [name for name in names if self._handlers[name]]

    def tell(self, event: RunEvent, *, caught: type[BaseException] = BaseException) -> None:
        """Call each handler of the event. The exception of one is logged, and the others are still called.

        An exception that is not a `caught` one is raised at once.
        """
        for handler in self._handlers[event.name]:
            try:
                handler(event)
            except caught:
                log.exception("the handler %s of %s, job %s, raised", _name(handler), event.name, event.job_id)

    def headers(self, given: Mapping[str, str] | None) -> dict[str, str]:
        """Return the headers of a new job: `given` ones replace those of sources. Raises `ArgumentsError`."""
        found: dict[str, str] = {}
        for source in self.sources:
            found |= check_headers(source(), f"the headers of {_name(source)}")
        return check_headers(found | dict(given or {})) if found else dict(given or {})


def event_names(given: Iterable[object]) -> list[str]:
    """Return the names of events. Raises `DeclarationError` for an unknown name, and for an empty list."""
    valid = f"valid events: {', '.join(EVENTS)}"
    chosen = list(given)
    if not chosen or callable(chosen[0]):
        above = f" above {_name(chosen[0])}" if chosen else ""
        raise DeclarationError(f"no event is named: write @jobs.on('failed'){above}; {valid}")
    if unknown := [name for name in chosen if name not in EVENTS]:
        raise DeclarationError(f"unknown event {unknown[0]!r:.60}; {valid}")
    return [str(name) for name in chosen]


def surroundings(middleware: Middleware, run: RunContext) -> AbstractContextManager[Any]:
    """Call a middleware, and return its context manager. Raises `ConfigurationError` if it returns anything else."""
    made: object = middleware(run)
    if isinstance(made, AbstractContextManager):
        return made
    raise ConfigurationError(
        f"the middleware {_name(middleware)} returned {made!r:.60}, which is no context manager: write "
        "@contextmanager between @jobs.middleware and a function with one yield"
    )


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
    """Return the module and name of a function; None for a lambda, a method or a local function."""
    name = getattr(target, "__qualname__", "<")
    is_bound = getattr(target, "__self__", None) is not None
    return None if "<" in name or is_bound else (target.__module__, name)


def _name(target: object) -> str:
    return str(getattr(target, "__qualname__", repr(target)))


def _replace_or_add(targets: list[Any], target: Any) -> None:
    """Add a function, or replace the former one if it is declared again, as by a reload."""
    for number, other in enumerate(targets):
        if other is target or (_place(target) is not None and _place(other) == _place(target)):
            targets[number] = target
            return
    targets.append(target)
