"""`run_job`: calls a task as a worker would, but without a job."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from pydantic_core import from_json
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from sqla_jobs.errors import ArgumentsError, ConfigurationError
from sqla_jobs.execution.coroutine import check_greenlet
from sqla_jobs.execution.held_job import Attempt
from sqla_jobs.execution.steps import RunSteps
from sqla_jobs.execution.surroundings import Surrounded, awaited_within, within
from sqla_jobs.queries import Claimed
from sqla_jobs.rules.value_checks import check_integer
from sqla_jobs.tasks.arguments import encode_result
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.tasks.hooks import Middleware, check_headers, is_asynchronous
from sqla_jobs.tasks.run_context import AsyncRunContext, RunContext
from sqla_jobs.tasks.sessions import AnyAsyncSession, AnySession, plain_session, synchronous_session
from sqla_jobs.tasks.task import Task
from sqla_jobs.testing.awaiting import Here, InGreenlet, around_test, check_session, resources_of_test
from sqla_jobs.testing.claims import Savepoints
from sqla_jobs.testing.given import HOW_TO_GIVE_A_TASK
from sqla_jobs.testing.steps import MemoryStore

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

C = ParamSpec("C")
E = TypeVar("E", bound=Callable[..., Any])  # without the bound, mypy would infer the awaited result
E_co = TypeVar("E_co", covariant=True)
P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="Session | AsyncSession")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")


class RunOptions(TypedDict, total=False):
    """Values for the `RunContext` that `run_job` gives to the task."""

    attempt: int
    """The number of the attempt, counted from 1; by default 1."""
    max_attempts: int
    """The attempt after which a failure is final; by default the task's own maximum."""
    scheduled_for: datetime
    """The tick of the schedule that enqueued the job; by default no schedule did."""
    cancel_requested: bool
    """True if the cancellation of the job was requested; by default False."""
    resources: Iterable[object]
    """The objects in `run.resources`. The worker contexts are then not entered."""
    headers: Mapping[str, str]
    """Headers of the job, in addition to those that `@jobs.headers` adds."""
    signals: Mapping[str, Sequence[object]]
    """The payloads of signals that the job receives, by name. By default there are none, so waits time out."""
    results: Mapping[Task[..., Any, Any], Sequence[object]]
    """The results of the jobs before this one, by task: what `run.results` returns. By default there are none."""


class Call(Protocol[P, R_co]):
    """A call of a task without its injected parameters."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class _Nobody:
    """Matches only callables of unknown signature, such as a task looked up by name; only `Any` is a `_Nobody`."""


class _Injected(Protocol[C, E_co]):
    def _without_injected(self, target: Callable[C, object], /) -> E_co: ...


class _CallOf(Generic[C]):
    """Selects the overload when a run is called, as `_EnqueueOf` does for `task.enqueue`."""

    def __get__(self, run: _Injected[C, E], owner: object = None, /) -> E:
        return run._without_injected(lambda *_, **__: None)  # type checkers alone read this


class Run(Generic[C, R]):
    """The return value of `run_job`: runs the task when called with its arguments."""

    __call__: _CallOf[C] = _CallOf()

    def __init__(self, session: Session, task: Task[C, R, Any], options: RunOptions) -> None:
        self._session = session
        self._task = task
        self._options = options

    @overload
    def _without_injected(self, target: Callable[Concatenate[_Nobody, ...], object], /) -> Call[..., R]: ...
    @overload
    def _without_injected(self, target: Callable[Concatenate[S, AsyncRunContext, P], object], /) -> Call[P, R]: ...
    @overload
    def _without_injected(self, target: Callable[Concatenate[S, P], object], /) -> Call[P, R]: ...
    @overload
    def _without_injected(self, target: Callable[Concatenate[AsyncRunContext, P], object], /) -> Call[P, R]: ...
    @overload
    def _without_injected(self, target: Callable[P, object], /) -> Call[P, R]: ...
    def _without_injected(self, target: Callable[..., object], /) -> Call[..., R]:
        """Return the call, typed without the injected parameters."""
        return self._run

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        return self._by(Here(), args, kwargs)

    def _by(self, body: Here, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        declaration = self._task._declaration
        hooks = self._task._hooks
        stored = declaration.codec.encode(self._session, self._task._bind(args, kwargs)).decode()
        headers = hooks.headers(self._options.get("headers"))
        context = hooks.context_in(self._session)
        with resources_of_test(hooks, self._session, self._options.get("resources")) as (resources, _):
            attempt = _attempt(declaration, self._options, stored)
            run = _context(
                declaration, self._options, headers=headers, resources=resources, _begin_steps=attempt.begin_steps
            )
            called = partial(_called, declaration, self._session, run, attempt, body, hooks.middleware)
            with Surrounded(context(run), attempt), within(hooks.middleware, run, attempt):
                if not declaration.signature.wants_session:
                    attempt.make_steps = self._steps(None, body)
                    return called()
                savepoints = Savepoints(self._session, self._task._models)
                attempt.session = self._session
                attempt.make_steps = self._steps(savepoints, body)
                with savepoints.begin():
                    result = called()
                    savepoints.check_constraints()
                    return result

    def _steps(self, savepoints: Savepoints | None, body: Here) -> Callable[[Attempt], RunSteps]:
        """Return a function that creates the run's steps, which are kept in memory."""
        store = MemoryStore(self._session, savepoints, self._options.get("signals", {}))
        is_coroutine = self._task._declaration.signature.is_coroutine

        def made(attempt: Attempt) -> RunSteps:
            attempt.body = body
            return RunSteps(attempt, store, is_coroutine=is_coroutine)

        return made


class AwaitedRun(Run[C, R]):
    """A run that must be awaited: one of a coroutine task, or one with an `AsyncSession`."""

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        body = InGreenlet() if self._task._declaration.signature.is_coroutine else Here()
        return greenlet_spawn(self._by, body, args, kwargs)


@overload
def run_job(
    session: AnySession | AnyAsyncSession, task: Task[C, _Nobody, Any], /, **options: Unpack[RunOptions]
) -> Run[C, Any]: ...
@overload
def run_job(
    session: AnySession | AnyAsyncSession, task: Task[C, Coroutine[Any, Any, T], Any], /, **options: Unpack[RunOptions]
) -> Run[C, Coroutine[Any, Any, T]]: ...
@overload
def run_job(session: AnySession, task: Task[C, R, Any], /, **options: Unpack[RunOptions]) -> Run[C, R]: ...
@overload
def run_job(
    session: AnyAsyncSession, task: Task[C, R, Any], /, **options: Unpack[RunOptions]
) -> Run[C, Coroutine[Any, Any, R]]: ...
def run_job(
    session: AnySession | AnyAsyncSession, task: Task[C, Any, Any], /, **options: Unpack[RunOptions]
) -> Run[C, Any]:
    """Return a call that runs a task as a worker would, but without a job: `run_job(session, settle)(order=order)`.

    The second call takes the arguments as `enqueue` does. It encodes, decodes and checks the arguments, injects the
    session and a `RunContext`, and checks that the result can be stored. It returns the result, or raises the task's
    exception. Nothing is recorded, retried or interrupted, and no event handler is called.

    The task runs inside the middleware of its `Jobs` and the `context=` of `jobs.bind`. With Flask, it runs inside a
    new application context instead, whose `db.session` is the test's session. A task with a session runs in a savepoint
    of `session`. Deferred constraints are checked at the savepoint's end; an exception rolls the savepoint back. For a
    coroutine task, or with an `AsyncSession`, await the call: `await run_job(session, fetch)(url=url)`.

    - `session`: the test's session. A coroutine task that takes a session needs an `AsyncSession`.
    - `task`: the task to run.
    - `options`: values of the task's `RunContext`: `attempt`, `max_attempts`, `scheduled_for`, `cancel_requested`,
      `headers`, `resources`. Without `resources=` the worker contexts are entered for the run. `signals` gives the
      payloads that `run.wait_for` returns, by the signals' names: `signals={"approved": [Approval(by="ada")]}`.
      `results` gives what `run.results` returns, by task: `results={fetch: ["a", "b"]}`.

    Each step is called, and each sleep ends at once. If a signal is not given, a wait for it times out at once; without
    a timeout, the wait raises an error.

    Raises `ArgumentsError` for arguments that do not fit, and for a result that cannot be stored;
    `ConfigurationError` for a coroutine task without the `AsyncSession` or greenlet that it needs.
    """
    if not isinstance(task, Task):
        raise ArgumentsError(f"run_job takes a task, got {task!r:.200}: {HOW_TO_GIVE_A_TASK}")
    checked, signature = _checked(task._declaration, options), task._declaration.signature
    below = synchronous_session(session)
    own = plain_session(cast("AnySession", session), f"run_job(session, {task._written})") if below is None else below
    if signature.is_coroutine and signature.wants_session and around_test(own) is None:
        raise ConfigurationError(
            f"{task.name} takes an AsyncSession, and run_job was given a Session that belongs to none: write "
            f"await run_job(session, {task._written})(…) with the AsyncSession of the test"
        )
    check_session(task._declaration, own)
    if below is None and not signature.is_coroutine:
        return Run(own, task, checked)
    check_greenlet(task.name)
    return AwaitedRun(own, task, checked)


class GivenResults:
    """The results that a test gives. The results are encoded, as if jobs had stored them."""

    def __init__(self, given: Mapping[Task[..., Any, Any], Sequence[object]]) -> None:
        self._stored = {
            task.name: [from_json(encode_result(value) or "null") for value in values] for task, values in given.items()
        }

    def results(self, job_id: int, tasks: Sequence[str]) -> list[Any]:
        """Return the results given for the tasks with these names."""
        return [value for name in tasks for value in self._stored.get(name, ())]

    def batch(self, job_id: int) -> None:
        """Return None: without a row the job is in no batch."""


def _checked(declaration: Declaration, options: RunOptions) -> RunOptions:
    if unknown := options.keys() - RunOptions.__annotations__.keys():
        raise ArgumentsError(f"unknown option {min(unknown)!r}; valid options: {', '.join(RunOptions.__annotations__)}")
    chosen: RunOptions = {"attempt": 1, "max_attempts": declaration.defaults["max_attempts"], **options}
    most = check_integer("max_attempts", chosen.get("max_attempts"), least=1, most=1_000_000)
    check_integer("attempt", chosen.get("attempt"), least=1, most=most)
    check_headers(chosen.get("headers", {}))
    return chosen


def _context(declaration: Declaration, options: RunOptions, **others: Any) -> RunContext:
    deadline = None if declaration.timeout is None else time.monotonic() + declaration.timeout
    known: dict[str, Any] = {"deadline": deadline, **options, **others}
    known.pop("signals", None)
    known["_upstream"] = GivenResults(known.pop("results", {}))
    kind = AsyncRunContext if declaration.signature.is_coroutine else RunContext
    return kind(job_id=0, run_id=0, task=declaration.name, queue=declaration.defaults["queue"], **known)


def _attempt(declaration: Declaration, options: RunOptions, stored: str) -> Attempt:
    """Return an attempt for the steps, middleware and context of the run."""
    of_job = (0, 0, uuid.UUID(int=0), declaration.name, declaration.defaults["queue"], 0, 0, stored)
    attempts = (options.get("attempt", 1), options.get("max_attempts", 1))
    attempt = Attempt(Claimed(*of_job, *attempts, None, 0.0, None, 0.0), time.monotonic())
    attempt.declaration = declaration
    return attempt


def _called(
    declaration: Declaration,
    session: Session,
    run: RunContext,
    attempt: Attempt,
    body: Here,
    middleware: Iterable[Middleware],
) -> Any:
    signature = declaration.signature
    arguments = declaration.codec.load(session, declaration.codec.decode(attempt.job.args))
    injected: list[Any] = []
    if signature.wants_session:
        injected.append(around_test(session) if signature.is_coroutine else session)
    if signature.wants_context:
        injected.append(run)
    call = signature.call
    if signature.is_coroutine and (awaited := [one for one in middleware if is_asynchronous(one)]):
        call = partial(awaited_within, awaited, run, attempt, call)
    result = body.run(run, call, [injected, arguments])
    encode_result(result)
    return result
