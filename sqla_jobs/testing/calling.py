"""Calls a task as a worker does, without a job."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import datetime
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, overload

from sqlalchemy.orm import Session

from sqla_jobs.errors import ArgumentsError
from sqla_jobs.execution.attempt import Attempt
from sqla_jobs.execution.surroundings import Surrounded
from sqla_jobs.queries import Claimed
from sqla_jobs.rules.checks import check_integer
from sqla_jobs.tasks.arguments import encode_result
from sqla_jobs.tasks.context import RunContext
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.tasks.enqueue import AnySession, plain_session
from sqla_jobs.tasks.hooks import check_headers, surroundings
from sqla_jobs.tasks.task import Task
from sqla_jobs.testing.awaiting import around_test, awaited
from sqla_jobs.testing.claims import Savepoints

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

C = ParamSpec("C")
E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)
P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="Session | AsyncSession")
R_co = TypeVar("R_co", covariant=True)


class RunOptions(TypedDict, total=False):
    """What the `RunContext` of a task that `run_job` runs says."""

    attempt: int
    """The number of the attempt, from 1; by default 1."""
    max_attempts: int
    """The attempt after which a failure is final; by default that of the task."""
    scheduled_for: datetime
    """The tick of the schedule that enqueued the job; by default none did."""
    cancel_requested: bool
    """Whether somebody asked for the job to be cancelled; by default False."""
    headers: Mapping[str, str]
    """What is given along with the job, beside what `@jobs.headers` adds."""


class Call(Protocol[P, R_co]):
    """A call of a task with its arguments, those that are injected left out."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class _Nobody:
    """Only what takes anything takes one: a task that is known by its name alone."""


class _Injected(Protocol[C, E_co]):
    def without_injected(self, target: Callable[C, object], /) -> E_co: ...


class _CallOf(Generic[C]):
    """Chooses among the overloads where the run is called, as it is done for `task.enqueue`."""

    def __get__(self, run: _Injected[C, E], owner: object = None, /) -> E:
        return run.without_injected(lambda *_, **__: None)  # of interest to type checkers alone


class Run(Generic[C, R]):
    """Runs one task when it is called with its arguments; what `run_job` returns."""

    __call__: _CallOf[C] = _CallOf()

    def __init__(self, session: Session, task: Task[C, R, Any], options: RunOptions) -> None:
        self._session = session
        self._task = task
        self._options = options

    @overload
    def without_injected(self, target: Callable[Concatenate[_Nobody, ...], object], /) -> Call[..., R]: ...
    @overload
    def without_injected(self, target: Callable[Concatenate[S, RunContext, P], object], /) -> Call[P, R]: ...
    @overload
    def without_injected(self, target: Callable[Concatenate[S, P], object], /) -> Call[P, R]: ...
    @overload
    def without_injected(self, target: Callable[Concatenate[RunContext, P], object], /) -> Call[P, R]: ...
    @overload
    def without_injected(self, target: Callable[P, object], /) -> Call[P, R]: ...
    def without_injected(self, target: Callable[..., object], /) -> Call[..., R]:
        """How a task of this kind is called."""
        return self._run

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        declaration = self._task.declaration
        hooks = self._task.hooks
        stored = declaration.codec.encode(self._session, self._task.bind(args, kwargs)).decode()
        run = _context(declaration, {**self._options, "headers": hooks.headers(self._options.get("headers"))})
        held = _held(declaration, run, stored)
        with ExitStack() as around:
            for middleware in hooks.middleware:
                around.enter_context(Surrounded(surroundings(middleware, run), held))
            if declaration.signature.wants_session:
                around.enter_context(Savepoints(self._session).begin())
            return _called(declaration, self._session, run, stored)


def run_job(session: AnySession, task: Task[C, R, Any], /, **options: Unpack[RunOptions]) -> Run[C, R]:
    """What runs the task as a worker would, here and without a job: `run_job(session, settle, attempt=3)(order=order)`.

    It takes the arguments as `enqueue` does. They are encoded, decoded and checked as for a job, the session and a
    `RunContext` are injected, and the result must be one that can be stored. It returns that result, or raises what
    the task raised; nothing is recorded, retried or interrupted, and no event handler is told. It runs inside of the
    middleware of its `Jobs`. A task with a session runs in a savepoint of `session`, which is rolled back where it
    raises.

    - `session`: that of the test.
    - `task`: a task. One that is a class is `jobs.tasks["its name"]`.
    - `options`: what the task's `RunContext` says: `attempt`, `max_attempts`, `scheduled_for`, `cancel_requested`,
      `headers`.

    Raises `ArgumentsError` for arguments that do not fit, and for a result that cannot be stored.
    """
    if not isinstance(task, Task):
        raise ArgumentsError(
            f"run_job takes a task, got {task!r:.200}: write @jobs.task above a function; a class that is a task is "
            "given as jobs.tasks['its name']"
        )
    return Run(plain_session(session), task, _checked(task.declaration, options))


def _checked(declaration: Declaration, options: RunOptions) -> RunOptions:
    if unknown := options.keys() - RunOptions.__annotations__.keys():
        raise ArgumentsError(f"unknown option {min(unknown)!r}; valid options: {', '.join(RunOptions.__annotations__)}")
    chosen: RunOptions = {"attempt": 1, "max_attempts": declaration.defaults["max_attempts"], **options}
    most = check_integer("max_attempts", chosen.get("max_attempts"), least=1, most=1_000_000)
    check_integer("attempt", chosen.get("attempt"), least=1, most=most)
    check_headers(chosen.get("headers", {}))
    return chosen


def _context(declaration: Declaration, options: RunOptions) -> RunContext:
    deadline = None if declaration.timeout is None else time.monotonic() + declaration.timeout
    known: dict[str, Any] = {"deadline": deadline, **options}
    return RunContext(job_id=0, run_id=0, task=declaration.name, queue=declaration.defaults["queue"], **known)


def _held(declaration: Declaration, run: RunContext, stored: str) -> Attempt:
    """The attempt as what is around it knows it."""
    of_job = (run.job_id, run.run_id, uuid.UUID(int=0), run.task, run.queue, 0, 0, stored)
    held = Attempt(Claimed(*of_job, run.attempt, run.max_attempts, None, 0.0, None, 0.0), time.monotonic())
    held.secrets = declaration.secrets(stored)
    return held


def _called(declaration: Declaration, session: Session, run: RunContext, stored: str) -> Any:
    signature = declaration.signature
    arguments = declaration.codec.load(session, declaration.codec.decode(stored))
    injected: list[Any] = []
    if signature.wants_session:
        injected.append(around_test(session) if signature.is_coroutine else session)
    if signature.wants_context:
        injected.append(run)
    result = awaited(signature.call(injected, arguments))
    encode_result(result)
    return result
