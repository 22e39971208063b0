"""The steps of a run, for its `RunContext`. Later attempts of the job use the stored results."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any, NoReturn, Protocol, TypeVar

from sqla_jobs.errors import JobsError

T = TypeVar("T")


class Suspension(BaseException):
    """Leaves a task whose job sleeps or waits for a signal. `except Exception` does not catch it."""


class Misuse(JobsError):
    """The task uses steps incorrectly. Another attempt would do so again."""


class Steps(Protocol):
    """The steps of one run."""

    def call(self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return the stored result of a step, or call `function` and store its result. A coroutine task awaits this."""
        ...

    def sleep(self, name: str, length: float | timedelta) -> Any:
        """Suspend the run until the sleep has ended. A coroutine task awaits this."""
        ...

    def wait_for(self, name: str, kind: Any, timeout: float | timedelta | None) -> Any:
        """Return a signal's payload. If there is no signal yet, suspend the run until one comes.

        A coroutine task awaits this.
        """
        ...

    def read(self, function: Callable[[], T]) -> Awaitable[T]:
        """Call a function that reads the database, while the event loop of a coroutine task goes on."""
        ...


def no_steps() -> NoReturn:
    """Raise the error about steps in a run that does not record them."""
    raise JobsError(
        "steps are recorded for a task that a worker runs, which takes a RunContext: in a test call it by "
        "run_job(session, task)(…), and in a middleware leave steps to the task"
    )
