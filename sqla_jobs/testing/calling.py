"""`run_job`: runs one job of a task, and gives its result or its exception to the test."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
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
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from sqla_jobs.errors import ArgumentsError, ConfigurationError, JobsError
from sqla_jobs.execution.coroutine import check_greenlet
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.types import PARKED
from sqla_jobs.rules.outcomes import RunOutcome
from sqla_jobs.rules.value_checks import CENTURY
from sqla_jobs.tasks.hooks import check_headers
from sqla_jobs.tasks.run_context import AsyncRunContext
from sqla_jobs.tasks.sessions import AnyAsyncSession, AnySession, plain_session, synchronous_session
from sqla_jobs.tasks.task import Task
from sqla_jobs.testing.awaiting import around_test
from sqla_jobs.testing.claims import promote
from sqla_jobs.testing.drain import Runner
from sqla_jobs.testing.factories import make_job
from sqla_jobs.testing.messages import HOW_TO_GIVE_A_TASK

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
    """Values of the job that `run_job` runs."""

    attempt: int
    """The number of the attempt, counted from 1; by default 1."""
    max_attempts: int
    """The attempt after which a failure is final; by default the task's own maximum."""
    scheduled_for: datetime
    """The tick of the schedule that enqueued the job; by default no schedule did."""
    resources: Iterable[object]
    """The objects in `run.resources`. The worker contexts are then not entered."""
    headers: Mapping[str, str]
    """Headers of the job, in addition to those that `@jobs.headers` adds."""
    signals: Mapping[str, Sequence[object]]
    """The payloads of signals that the job receives, by name. By default there are none, so waits time out."""


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
        return self._run_job(self._task._bind(args, kwargs), **self._options)

    def _run_job(
        self,
        arguments: dict[str, Any],
        *,
        attempt: int = 1,
        max_attempts: int | None = None,
        scheduled_for: datetime | None = None,
        resources: Iterable[object] | None = None,
        headers: Mapping[str, str] | None = None,
        signals: Mapping[str, Sequence[object]] = MappingProxyType({}),
    ) -> Any:
        session, task = self._session, self._task
        jobs = cast("Jobs[Any]", task._waits)
        task._declaration.codec.encode(session, arguments)  # `make_job` would take fewer arguments
        job = make_job(
            session,
            task,
            args=arguments,
            attempt=attempt - 1,
            queue=f"run_job {uuid4()}",  # no other job is in it
            headers=task._hooks.headers(check_headers(headers or {})) or None,
            max_attempts=task._declaration.defaults["max_attempts"] if max_attempts is None else max_attempts,
            scheduled_for=scheduled_for,
        )
        for name, payloads in signals.items():
            for payload in payloads:
                jobs.signal(session, job, name, payload)
        with Runner.entered(jobs, session, ahead=CENTURY, resources=resources) as runner:
            self._run_to_its_end(runner, job)
        return task._declaration.result_of(job)

    def _run_to_its_end(self, runner: Runner, job: JobMixin) -> None:
        """Run the job until it has succeeded. Raises what the run raises."""
        while True:
            (claimed,) = runner.queries.claim_whatever_the_limits(
                self._session, runner.process_id, {job.queue: 1}, [self._task.name]
            )
            error, end, is_suspended = runner.run(claimed._replace(queue=self._task._declaration.defaults["queue"]))
            if not is_suspended:
                if end.outcome.kind == RunOutcome.succeeded:
                    return
                raise error or JobsError(f"{self._task.name} has not succeeded: {end.outcome}")
            if job.run_at == PARKED:
                raise ArgumentsError(
                    f"{self._task.name} waits for ever for a signal that the test does not give: write "
                    "run_job(session, task, signals={its name: [its payload]})"
                )
            job.run_at = sa.func.now()
            self._session.flush()
            promote(self._session, runner.queries, ahead=0.0)


class AwaitedRun(Run[C, R]):
    """A run that must be awaited: one of a coroutine task, or one with an `AsyncSession`."""

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        return greenlet_spawn(super()._run, *args, **kwargs)


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
    """Return a call that runs one job of a task: `run_job(session, settle)(order=order)`.

    The second call takes the arguments as `enqueue` does. It adds a job and runs it alone, as `drain` does: with all
    hooks, whatever its limits and pauses are, in a savepoint of `session` if the task takes a session. It returns the
    result, or raises what the run has raised; that job is recorded as failed or retried, and is not run again. For a
    coroutine task, or with an `AsyncSession`, await the call: `await run_job(session, fetch)(url=url)`.

    - `session`: the test's session. A coroutine task that takes a session needs an `AsyncSession`.
    - `task`: the task to run.
    - `options`: values of the job: `attempt`, `max_attempts`, `scheduled_for`, `headers`. Without `resources=` the
      worker contexts are entered for the run. `signals` gives the payloads that `run.wait_for` returns, by the signals'
      names: `signals={"approved": [Approval(by="ada")]}`.

    Each step is called, and each sleep ends at once. If a signal is not given, a wait for it times out at once; without
    a timeout, the wait raises an error.

    Raises `ArgumentsError` for arguments that do not fit; `UnstorableResult`; `JobsError` for a run that has not
    succeeded although it raised nothing; `ConfigurationError` for a coroutine task without the
    `AsyncSession` or greenlet that it needs.
    """
    if not isinstance(task, Task):
        raise ArgumentsError(f"run_job takes a task, got {task!r:.200}: {HOW_TO_GIVE_A_TASK}")
    signature = task._declaration.signature
    below = synchronous_session(session)
    own = plain_session(cast("AnySession", session), f"run_job(session, {task._written})") if below is None else below
    if signature.is_coroutine and signature.wants_session and around_test(own) is None:
        raise ConfigurationError(
            f"{task.name} takes an AsyncSession, and run_job was given a Session that belongs to none: write "
            f"await run_job(session, {task._written})(…) with the AsyncSession of the test"
        )
    if below is None and not signature.is_coroutine:
        return Run(own, task, options)
    check_greenlet(task.name)
    return AwaitedRun(own, task, options)
