"""The steps of a run, as `RunContext` offers them. Later attempts of the job use the results that are stored."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from typing import Any, NoReturn, Protocol

from sqla_jobs.errors import JobsError


class Suspension(BaseException):
    """Leaves a task whose job sleeps or waits for a signal. It passes through `except Exception`, as it is not one."""


class Misuse(JobsError):
    """The task uses steps in a way that no further attempt makes right."""


class Steps(Protocol):
    """The steps of one run."""

    def call(self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return a step's stored result, or call `function` and store what it returns. A coroutine task awaits it."""
        ...

    def sleep(self, name: str, length: float | timedelta) -> None:
        """Leave the run until its time has come."""
        ...

    def sleep_awaited(self, name: str, length: float | timedelta) -> Coroutine[Any, Any, None]:
        """Leave the run of a coroutine task until its time has come."""
        ...

    def wait_for(self, name: str, kind: Any, timeout: float | timedelta | None) -> Any:
        """Return a signal's payload, or leave the run until one comes."""
        ...

    def wait_for_awaited(self, name: str, kind: Any, timeout: float | timedelta | None) -> Coroutine[Any, Any, Any]:
        """Return a signal's payload, or leave the run of a coroutine task until one comes."""
        ...


def no_steps() -> NoReturn:
    """Raise the error of a run that has no steps."""
    raise JobsError(
        "steps are recorded for a task that a worker runs, which takes a RunContext: in a test call it by "
        "run_job(session, task)(…), and in a middleware leave steps to the task"
    )
