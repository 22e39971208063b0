"""A task: a function with a stable name, which can be called and enqueued."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.tasks.enqueue import EnqueueOptions, check_options
from sqla_jobs.tasks.enqueuer import Enqueuer
from sqla_jobs.tasks.hooks import Hooks
from sqla_jobs.tasks.schedule import ScheduleOptions, Schedules

C = ParamSpec("C")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")
J = TypeVar("J", bound=JobMixin)


class Task(Enqueuer[C, J], Generic[C, R_co, J]):
    """A registered function. Call it to run it in this process, or enqueue it."""

    def __init__(
        self, declaration: Declaration, models: Models[J], schedules: Schedules, hooks: Hooks, waits: _Waits[J]
    ) -> None:
        super().__init__(declaration, models, {}, hooks)
        self._schedules = schedules
        self._waits = waits
        self.__name__: str = declaration.signature.qualname.rpartition(".")[2]
        self.__qualname__ = declaration.signature.qualname
        self.__module__ = declaration.signature.module
        self.__doc__ = declaration.signature.target.__doc__
        self.__wrapped__: Callable[..., Any] = declaration.signature.target

    @property
    def name(self) -> str:
        """The name stored with each of the task's jobs."""
        return self._declaration.name

    def __call__(self, *args: C.args, **kwargs: C.kwargs) -> R_co:
        """Call the function in this process."""
        return cast("R_co", self.__wrapped__(*args, **kwargs))

    def options(self, **options: Unpack[EnqueueOptions]) -> Enqueuer[C, J]:
        """Return the task with options for its jobs. For a missing option or None, the task's declaration applies.

        - `delay`: the time from now until the job is due: a timedelta or seconds, up to 100 years. The server's clock
          measures it. 0 overrides the task's delay.
        - `run_at`: the earliest time at which the job runs: a datetime with a time zone. `PARKED` is a time that never
          comes.
        - `queue`: the name of a queue, 1 to 200 printable characters without `=` and `,`.
        - `priority`: from -10 to 10; lower numbers run first.
        - `max_attempts`: from 1 to 1,000,000.
        - `max_lost`: from 1 to 1,000. With it, a run that is lost to a crash gives its attempt back, and the job ends
          as failed after so many lost runs in a row.
        - `unique_key`: text of 1 to 500 characters. At most one live job (blocked, scheduled, queued or running) has
          this key; if there is such a job, the enqueue returns it, unless the `Unique` policy decides otherwise.
        - `unique`: a `Unique`, the policy for a key that is taken. Without `unique_key`, the `Unique` also makes the
          key.
        - `headers`: a mapping of at most 50 names to texts, for middleware and the `RunContext`.
        - `columns`: a mapping of names to values, for the columns of your own `job_class`.
        - `after`: a job or a batch, or a list of these, that must end before the new job starts. Each job or batch is
          in the database already, or pending in the same session.
        - `if_failed`: the handling of the new job if a job that it waits for fails, is cancelled or is deleted.
          "cancel" (the default) cancels it, and in turn the jobs after it. "run" runs it once all the jobs that it
          waits for have ended. "hold" keeps it waiting until somebody retries the failed job, or the new one.
        - `batch`: the batch that the job joins.
        - `timeout`: the time limit of each attempt: a timedelta or seconds, up to 100 years.
        - `retention`: how long the job is kept after its end, whatever that is: a timedelta or seconds, up to 100
          years.
        - `expires`: the latest start: a datetime with a time zone, or the time from now as a timedelta or seconds, by
          the server's clock. A job that has not begun by then ends as cancelled when a worker claims it.

        Raises `ArgumentsError` for an unknown option, and for an invalid value.
        """
        checked = check_options(self._declaration.titled, self._models.Job, options)
        return Enqueuer(self._declaration, self._models, checked, self._hooks)

    @overload
    def result(self: Task[..., Coroutine[Any, Any, T], J], job: J | int, /, *, timeout: float | None = None) -> T: ...
    @overload
    def result(self, job: J | int, /, *, timeout: float | None = None) -> R_co: ...
    def result(self, job: J | int, /, *, timeout: float | None = None) -> Any:
        """Wait until a job has ended, and return its result as a value of the task's return type.

        - `job`: the job, or its id. The job must be committed.
        - `timeout`: seconds until `TimeoutError`; by default the call waits for ever.

        Raises `JobFailed` if the job fails for good or is cancelled, `TimeoutError` after `timeout` seconds,
        `UnknownJob` if there is no such job, `ArgumentsError` for a job of another task, and for a stored result that
        does not fit the return type, and `Undecryptable` for a result whose key this process lacks.
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
        """Wait like `result`, but in an event loop: other coroutines run in the meantime.

        - `job`, `timeout`: as for `result`.

        Raises the same errors as `result`.
        """
        ended = await self._waits.wait_async(job, timeout=timeout)
        return self._declaration.result_of(ended)

    def schedule(self, cron: str, /, **options: Unpack[ScheduleOptions]) -> None:
        """Declare a schedule that enqueues the task by a cron rule. Workers and clocks store it as a row.

        - `cron`: five fields such as `30 2 * * *`, six with seconds first, or the result of `sqla_jobs.cron.every`.
        - `name`: the schedule's name; by default the task's name. Each name makes a separate schedule.
        - `timezone`: an IANA name such as "Europe/Paris"; by default UTC.
        - `args`: a mapping of the task's arguments to their values.
        - `queue`, `priority`: the queue and priority of the schedule's jobs; by default the task's own.
        - `catch_up`: "skip" fires no missed ticks. "latest" (the default) fires only the newest one. "all" fires the
          newest 100, the oldest of them first.
        - `overlap`: whether a tick fires while an earlier tick's job is live: "allow" (the default) or "skip".
        - `jitter`: the maximum random delay of each job after its tick: a timedelta or seconds, up to a day.
        - `enabled`: False declares the schedule as disabled.

        Operators may change the row, and code does not undo their changes.

        Raises `ConfigurationError` for an invalid rule or time zone; `ArgumentsError` for arguments that do not fit the
        task; `DeclarationError` for an invalid option, and for a name that another schedule has.
        """
        self._schedules.declare(self._declaration, cron, options, partial(self._bind, ()))

    def __repr__(self) -> str:
        return f"<Task {self.name} of {self.__module__}.{self.__qualname__}>"


class _Waits(Protocol[J]):
    def wait(self, job: J | int, /, *, timeout: float | None = None) -> J: ...

    async def wait_async(self, job: J | int, /, *, timeout: float | None = None) -> J: ...  # noqa: ASYNC109


TaskLike = Task[..., Any, Any] | str
"""A task, or a task's name."""
