"""`RunContext` and `AsyncRunContext`: the facts about a run, for the run's task."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from sqla_jobs.errors import ArgumentsError
from sqla_jobs.tasks.resources import NO_RESOURCES, Resources
from sqla_jobs.tasks.steps import Steps, no_steps

if TYPE_CHECKING:
    from sqla_jobs.models.workflow_columns import BatchMixin
    from sqla_jobs.tasks.task import Task

P = ParamSpec("P")
T = TypeVar("T")


def _nowhere(fraction: float, message: str | None) -> None:
    """Discard the reported progress."""


class Upstream(Protocol):
    """Reads data about the jobs and the batch around a job."""

    def results(self, job_id: int, tasks: Sequence[str]) -> list[Any]:
        """Return the results of the succeeded jobs of these tasks that the job was enqueued after."""
        ...

    def batch(self, job_id: int) -> BatchMixin | None:
        """Return the job's batch, or None."""
        ...


@dataclass(slots=True, eq=False, kw_only=True)
class RunContext:
    """One run of a task: its job, attempt and deadline. A task receives it in a leading parameter of this type."""

    job_id: int
    """The id of the job, the same in each attempt."""
    run_id: int
    """The id that this attempt's row of `jobs.Run` will have."""
    task: str
    """The name of the task, as stored with the job."""
    queue: str
    """The queue from which the job was claimed."""
    attempt: int
    """The number of this attempt, counted from 1."""
    max_attempts: int
    """The attempt after which a failure is final."""
    shard: str = ""
    """The name of the run's database, if the jobs are in several."""
    deadline: float | None = None
    """The value of `time.monotonic()` at which the attempt is interrupted.

    `None` if neither the task nor the worker has a `timeout=`.
    """
    scheduled_for: datetime | None = None
    """The tick of the schedule that enqueued the job; `None` if no schedule did."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """The headers that were stored with the job when it was enqueued, such as the id of the request."""
    cancel_requested: bool = False
    """True once somebody has asked to cancel this job. The run learns of the request within about a second."""
    resources: Resources = field(default=NO_RESOURCES, repr=False)
    """The objects that the process's worker contexts have yielded, by type: `run.resources[httpx.Client]`."""
    _upstream: Upstream | None = field(default=None, repr=False)
    """Reads the results of the jobs that this job was enqueued after. `None` outside of workers."""
    _publish: Callable[[float, str | None], None] = field(default=_nowhere, repr=False)
    """The function that `progress` calls."""
    _begin_steps: Callable[[], Steps] = field(default=no_steps, repr=False)
    """The function that returns the run's steps. The first call creates the steps."""
    _cancelling: Callable[[Any], AbstractContextManager[object]] = field(default=nullcontext, repr=False)
    """The function that `cancelling` calls. Outside of workers nothing is interrupted."""

    @property
    def remaining(self) -> float | None:
        """The seconds until `deadline`, never below zero; `None` without a deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    @overload
    def results(self, task: Task[..., Coroutine[Any, Any, T], Any], /) -> list[T]: ...
    @overload
    def results(self, task: Task[..., T, Any], /) -> list[T]: ...
    def results(self, task: Task[..., Any, Any], /) -> list[Any]:
        """Return the results of the jobs that this job was enqueued after, as values of the task's return type.

        - `task`: the task of these jobs. Only jobs that succeeded count.

        The results are in the order of `after=`. Those of a batch are in the order of the jobs' ids. Each call reads
        the results from the database.

        Raises `ArgumentsError` if a stored result does not fit the return type.
        """
        if self._upstream is None:
            return []
        declaration = task._declaration
        stored = self._upstream.results(self.job_id, [declaration.name, *declaration.aliases])
        return [declaration.as_result(value) for value in stored]

    @property
    def batch(self) -> BatchMixin | None:
        """The job's batch; `None` if it has none. Other jobs join the batch with `options(batch=run.batch)`.

        Only its `id` is loaded: `session.merge(run.batch)` returns the whole row. Each access reads the database.
        """
        return None if self._upstream is None else self._upstream.batch(self.job_id)

    def progress(self, fraction: float, message: str | None = None) -> None:
        """Report the progress of the run, as `Job.progress` and `Job.progress_message`.

        - `fraction`: from 0 to 1.
        - `message`: human-readable text; None removes the previous one.

        Frequent calls are cheap: a worker stores the newest value at most ten times a second.

        Raises `ValueError` for a fraction that is not a number from 0 to 1.
        """
        if not (math.isfinite(fraction) and 0 <= fraction <= 1):
            raise ValueError(f"progress must be a number from 0 to 1, got {fraction!r}")
        self._publish(float(fraction), message)

    def cancelling(self, what: Any, /) -> AbstractContextManager[object]:
        """Let a cancel or a timeout of the job end a blocking call: `with run.cancelling(connection): …`.

        Within the block, whatever interrupts the run first calls `what`, once and from another thread, so that the call
        ends on its server. The interruption follows, in place of the error with which the call ends. No call begins
        after the block, and the block waits for one in progress. Its errors are logged.

        - `what`: an object with a method `cancel()`, such as a connection of psycopg, or a function without arguments.

        Raises `ArgumentsError` for anything else, and `JobsError` in a coroutine task, which is cancelled by asyncio.
        """
        cancel = getattr(what, "cancel", what)
        if not callable(cancel):
            raise ArgumentsError(
                f"run.cancelling() takes an object with a method cancel(), or a function, got {what!r:.100}; of a "
                "SQLAlchemy connection give connection.connection.driver_connection"
            )
        return self._cancelling(cancel)

    def step(self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function, store its result and return it. Later attempts of the job return the stored result.

        In a task with a session, the function's writes through the session are committed with the result, so they
        happen exactly once. The run then continues in a new transaction, and the session's rows are loaded again. All
        other effects happen at least once: a process may die after the call and before the result is stored.

        - `name`: 1 to 200 characters, different for each step of the job. The result is stored under this name.
        - `function`: called with `args` and `kwargs`. Pydantic writes and reads the result according to the function's
          return annotation. Without an annotation, the result must be plain JSON. A result may have at most 1 MiB, and
          a job at most 1,000 steps.

        If the function raises, the exception propagates unchanged, and no result is stored. The function's writes
        through the session are rolled back, and the next attempt calls the function again.

        Raises `UnstorableResult` for a result that JSON would change, and `ArgumentsError` for a stored result that
        does not fit the type. Raises `JobsError` for a name that this run has already used, for a step inside
        another step, and if the task has written through its session outside of its steps, since the next attempt would
        repeat those writes.
        """
        return self._begin_steps().call(name, function, args, kwargs)  # type: ignore[no-any-return]

    def sleep(self, name: str, length: float | timedelta, /) -> None:
        """Continue later from here, on any worker. Meanwhile the job occupies no slot of a worker or a limit.

        The call leaves the task. When the time has come, a worker calls the task again from its beginning: stored steps
        return their results, and this call returns immediately. Code outside of steps runs again. A sleep does not use
        up an attempt.

        - `name`: 1 to 200 characters, different for each step of the job.
        - `length`: seconds or a timedelta, up to 100 years. The sleep begins when the job first reaches this call,
          and the database's clock measures it.

        Raises `JobsError` in the same cases as `step`.
        """
        self._begin_steps().sleep(name, length)

    @overload
    def wait_for(self, name: str, kind: type[T], /, *, timeout: float | timedelta | None) -> T: ...
    @overload
    def wait_for(self, name: str, kind: Any, /, *, timeout: float | timedelta | None) -> Any: ...
    def wait_for(self, name: str, kind: Any, /, *, timeout: float | timedelta | None) -> Any:
        """Return the payload of a signal that `jobs.signal` sends to this job.

        A signal sent before this call is received, too. If there is none yet, the call leaves the task, and the job
        occupies no slot of a worker or a limit. When the signal comes, or the timeout has passed, a worker calls the
        task again from its beginning: stored steps return their results, until the task reaches this call again. A
        wait does not use up an attempt. Several signals with one name are received in order, one per call.

        - `name`: the signal's name, 1 to 200 characters.
        - `kind`: the type that pydantic reads the payload as; None for a signal without a payload.
        - `timeout`: seconds or a timedelta. The time begins when the job first reaches this call, and the database's
          clock measures it. With None, the job waits for ever.

        If no signal comes in time, raises `SignalTimeout`, a `TimeoutError`, in this and later attempts. Raises
        `JobsError` in the same cases as `step`, and `ArgumentsError` for a payload that does not fit the type. Such a
        payload is discarded: the next call, in this attempt or a later one, receives the next signal.
        """
        return self._begin_steps().wait_for(name, kind, timeout)


@dataclass(slots=True, eq=False, kw_only=True)
class AsyncRunContext(RunContext):
    """One run of a coroutine task: a `RunContext` that awaits `step`, `sleep`, `wait_for`, `results` and `batch`."""

    @overload  # type: ignore[override]
    async def results(self, task: Task[..., Coroutine[Any, Any, T], Any], /) -> list[T]: ...
    @overload
    async def results(self, task: Task[..., T, Any], /) -> list[T]: ...
    async def results(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, task: Task[..., Any, Any], /
    ) -> list[Any]:
        """Return the results of the jobs that this job was enqueued after, as `RunContext.results` does."""
        if self._upstream is None:
            return []
        return await self._begin_steps().read(partial(RunContext.results, self, task))

    @property
    async def batch(self) -> BatchMixin | None:  # type: ignore[override]
        """The job's batch, as `RunContext.batch`: `options(batch=await run.batch)`."""
        if self._upstream is None:
            return None
        return await self._begin_steps().read(partial(self._upstream.batch, self.job_id))

    async def step(  # type: ignore[override]
        self, name: str, function: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Await a coroutine function, store its result and return it, as `RunContext.step` does.

        Without a session in the task, several steps may run at once.
        """
        return await self._begin_steps().call(name, function, args, kwargs)  # type: ignore[no-any-return]

    async def sleep(self, name: str, length: float | timedelta, /) -> None:  # type: ignore[override]
        """Continue later from here, on any worker, as `RunContext.sleep` does."""
        await self._begin_steps().sleep(name, length)

    @overload  # type: ignore[override]
    async def wait_for(self, name: str, kind: type[T], /, *, timeout: float | timedelta | None) -> T: ...  # noqa: ASYNC109
    @overload
    async def wait_for(self, name: str, kind: Any, /, *, timeout: float | timedelta | None) -> Any: ...  # noqa: ASYNC109
    async def wait_for(self, name: str, kind: Any, /, *, timeout: float | timedelta | None) -> Any:  # noqa: ASYNC109
        """Return the payload of a signal that `jobs.signal` sends to this job, as `RunContext.wait_for` does."""
        return await self._begin_steps().wait_for(name, kind, timeout)
