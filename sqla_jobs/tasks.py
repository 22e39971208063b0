"""A task: a function or class under a stable name, that can be called and enqueued."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Concatenate, Generic, ParamSpec, TypedDict, TypeVar, Unpack, cast, overload

import tenacity
from sqlalchemy.orm import Session

from sqla_jobs.arguments import Codec, entity_of
from sqla_jobs.context import RunContext
from sqla_jobs.enqueue import (
    AnySession,
    EnqueueOptions,
    add_many,
    add_one,
    check_common,
    check_options,
    plain_session,
)
from sqla_jobs.errors import ArgumentsError, DeclarationError
from sqla_jobs.mapping import Models
from sqla_jobs.models import JobMixin
from sqla_jobs.retry import DEFAULT_POLICY, check_policy
from sqla_jobs.signatures import Signature, inspect_target

C = ParamSpec("C")
P = ParamSpec("P")
R = TypeVar("R", covariant=True)
S = TypeVar("S", bound=Session)
J = TypeVar("J", bound=JobMixin)


class TaskOptions(TypedDict, total=False):
    """What is said about a task where it is declared."""

    name: str
    """Stored with each job; by default the function's or the class's own name."""
    queue: str
    priority: int
    """From -10 to 10, lower runs first."""
    max_attempts: int
    timeout: float | timedelta | None
    """Seconds one attempt may take."""
    retry: tenacity.BaseRetrying
    """When an attempt that raised is followed by another: `retry`, `stop` and `wait` of tenacity."""
    aliases: Sequence[str]
    """Names it had before, under which jobs may still be waiting."""
    sensitive: Sequence[str]
    """Arguments that no log, error, command or page shows."""


@dataclass(frozen=True)
class Declaration:
    """A task as it was declared and checked."""

    name: str
    signature: Signature
    codec: Codec
    policy: tenacity.BaseRetrying
    timeout: float | None
    aliases: tuple[str, ...]
    sensitive: frozenset[str]
    defaults: Mapping[str, Any]

    def secrets(self, arguments: Mapping[str, Any]) -> set[str]:
        """Texts among the sensitive arguments (as stored) that no message may show."""
        found: set[str] = set()

        def collect(value: Any) -> None:
            if isinstance(value, dict):
                for item in cast("dict[str, Any]", value).values():
                    collect(item)
            elif isinstance(value, list):
                for item in value:
                    collect(item)
            elif len(str(value)) > 2:
                found.add(str(value))

        for name in self.sensitive & arguments.keys():
            collect(arguments[name])
        return found


def declare(target: Callable[..., Any], options: TaskOptions) -> Declaration:
    """Check a task and its options. Raises `DeclarationError` that names what is wrong and the remedy."""
    unknown = options.keys() - TaskOptions.__annotations__.keys()
    if unknown:
        raise DeclarationError(f"task option {min(unknown)!r}: there are {', '.join(TaskOptions.__annotations__)}")
    signature = inspect_target(target)
    closure = getattr(target, "__closure__", None)
    if closure and "name" not in options:
        raise DeclarationError(
            f"{signature.qualname} is a closure: a worker can only find it if importing the application makes it "
            "again, so give it a name= of its own, or move it to the top of a module"
        )
    aliases, sensitive = _words("aliases", options), frozenset(_words("sensitive", options))
    name = options.get("name", target.__name__)
    for word in (name, *aliases):
        if not (isinstance(word, str) and 0 < len(word) <= 200 and word.isprintable()):
            raise DeclarationError(f"task name {word!r:.60}: a text of 1 to 200 printable characters")
    if missing := sensitive - signature.arguments.parameters.keys():
        raise DeclarationError(f"{name}: sensitive={sorted(missing)} names no argument of {signature.qualname}")
    given: dict[str, Any] = {key: options[key] for key in ("queue", "priority", "max_attempts") if key in options}
    try:
        check_common(given)
    except ArgumentsError as error:
        raise DeclarationError(f"{name}: {error}") from None
    codec = Codec(name, signature, sensitive)
    _refuse_rows_without_session(codec, signature)
    return Declaration(
        name,
        signature,
        codec,
        check_policy(options["retry"]) if options.get("retry") is not None else DEFAULT_POLICY,
        _timeout(name, options.get("timeout")),
        aliases,
        sensitive,
        {"queue": "default", "priority": 0, "max_attempts": 25} | given,
    )


def _words(option: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    words = options.get(option, ())
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise DeclarationError(f"{option}={words!r}: a list of names")
    return tuple(words)


def _timeout(name: str, timeout: object) -> float | None:
    if timeout is None:
        return None
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise DeclarationError(f"{name}: timeout={timeout!r}: a number of seconds above 0, or None")
    return float(seconds)


def _refuse_rows_without_session(codec: Codec, signature: Signature) -> None:
    if signature.wants_session:
        return
    for name in signature.arguments.parameters:
        try:
            annotation = signature.annotation(name)
        except DeclarationError:
            continue  # a name defined later: looked at again at the first enqueue
        if entity_of(annotation):
            raise codec.entity_without_session(name)


class Enqueuer(Generic[C, R, J]):
    """Enqueues one task with some options; what `options()` returns, and what a `Task` is."""

    def __init__(self, declaration: Declaration, models: Models[J], options: Mapping[str, Any]) -> None:
        self._declaration = declaration
        self._models = models
        self._options = options

    @overload
    def enqueue(
        self: Enqueuer[Concatenate[S, RunContext, P], Any, J],
        session: AnySession,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> J: ...
    @overload
    def enqueue(
        self: Enqueuer[Concatenate[S, P], Any, J],
        session: AnySession,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> J: ...
    @overload
    def enqueue(
        self: Enqueuer[Concatenate[RunContext, P], Any, J],
        session: AnySession,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> J: ...
    @overload
    def enqueue(self: Enqueuer[P, Any, J], session: AnySession, /, *args: P.args, **kwargs: P.kwargs) -> J: ...
    def enqueue(self, session: AnySession, /, *args: Any, **kwargs: Any) -> J:
        """Add a job to the caller's session; it exists if and only if the caller's transaction commits.

        Returns the job, pending like any object that was added. With a `unique_key` it is in the
        database already, or it is the live job of that key. Raises `ArgumentsError` for arguments that
        do not fit, having changed nothing.
        """
        into, declaration = plain_session(session), self._declaration
        values = self._bind(args, kwargs)
        encoded = declaration.codec.encode(into, values)
        return add_one(
            into,
            self._models,
            declaration.name,
            declaration.defaults,
            self._options,
            json.loads(encoded),
        )

    def enqueue_many(self, session: AnySession, arguments: Iterable[Mapping[str, Any]], /) -> int:
        """Add a job for each mapping of arguments, in order, and return how many there were.

        Any iterable, also one of millions: memory stays flat. They are inserted at once, in the caller's
        transaction; an error among them takes all of them back and names the position of the culprit.
        """
        into, declaration = plain_session(session), self._declaration

        def encoded() -> Iterator[bytes]:
            for position, values in enumerate(arguments):
                try:
                    yield declaration.codec.encode(into, self._bind((), values))
                except ArgumentsError as error:
                    raise ArgumentsError(f"item {position}: {error}") from None

        return add_many(into, self._models, declaration.name, declaration.defaults, self._options, encoded())

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        declaration = self._declaration
        parameters = declaration.signature.arguments.parameters
        for name in kwargs.keys() - parameters.keys():
            if name in EnqueueOptions.__annotations__:
                raise ArgumentsError(
                    f"{declaration.name} has no argument {name!r}; it is an option: "
                    f"{declaration.name}.options({name}=…).enqueue(session, …)"
                )
        return declaration.signature.bind(declaration.name, args, kwargs)


class Task(Enqueuer[C, R, J]):
    """A registered function. Call it to run it here and now, or enqueue it."""

    def __init__(self, declaration: Declaration, models: Models[J]) -> None:
        super().__init__(declaration, models, {})
        self.__name__ = declaration.signature.qualname.rpartition(".")[2]
        self.__qualname__ = declaration.signature.qualname
        self.__module__ = declaration.signature.module
        self.__doc__ = declaration.signature.target.__doc__
        self.__wrapped__ = declaration.signature.target

    @property
    def name(self) -> str:
        """The name stored with each of its jobs."""
        return self._declaration.name

    @property
    def declaration(self) -> Declaration:
        """How it was declared."""
        return self._declaration

    def __call__(self, *args: C.args, **kwargs: C.kwargs) -> R:
        """A plain call, in this process."""
        return cast("R", self.__wrapped__(*args, **kwargs))

    def options(self, **options: Unpack[EnqueueOptions]) -> Enqueuer[C, R, J]:
        """The same task, enqueued otherwise. Raises `ArgumentsError` for what no job could have."""
        return Enqueuer(self._declaration, self._models, check_options(self._models.Job, options))

    def __repr__(self) -> str:
        return f"<Task {self.name} of {self.__module__}.{self.__qualname__}>"
