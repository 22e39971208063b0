"""Calls a task as a worker does, without a job."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime
from typing import Any, Concatenate, ParamSpec, TypeVar, overload

from sqlalchemy.orm import Session

from sqla_jobs.errors import ArgumentsError
from sqla_jobs.rules.checks import check_integer
from sqla_jobs.tasks.arguments import encode_result
from sqla_jobs.tasks.context import RunContext
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.tasks.enqueue import AnySession, plain_session
from sqla_jobs.tasks.task import Task
from sqla_jobs.testing.claims import Savepoints

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=Session)


class _Nobody:
    """Only what takes anything takes one: a task that is known by its name alone comes first."""


@overload
def run_job(
    session: AnySession,
    task: Callable[Concatenate[_Nobody, ...], R],
    /,
    *,
    attempt: int = 1,
    max_attempts: int | None = None,
    scheduled_for: datetime | None = None,
    cancel_requested: bool = False,
) -> Callable[..., R]: ...
@overload
def run_job(
    session: AnySession,
    task: Callable[Concatenate[S, RunContext, P], R],
    /,
    *,
    attempt: int = 1,
    max_attempts: int | None = None,
    scheduled_for: datetime | None = None,
    cancel_requested: bool = False,
) -> Callable[P, R]: ...
@overload
def run_job(
    session: AnySession,
    task: Callable[Concatenate[S, P], R],
    /,
    *,
    attempt: int = 1,
    max_attempts: int | None = None,
    scheduled_for: datetime | None = None,
    cancel_requested: bool = False,
) -> Callable[P, R]: ...
@overload
def run_job(
    session: AnySession,
    task: Callable[Concatenate[RunContext, P], R],
    /,
    *,
    attempt: int = 1,
    max_attempts: int | None = None,
    scheduled_for: datetime | None = None,
    cancel_requested: bool = False,
) -> Callable[P, R]: ...
@overload
def run_job(
    session: AnySession,
    task: Callable[P, R],
    /,
    *,
    attempt: int = 1,
    max_attempts: int | None = None,
    scheduled_for: datetime | None = None,
    cancel_requested: bool = False,
) -> Callable[P, R]: ...
def run_job(
    session: AnySession,
    task: Callable[..., Any],
    /,
    *,
    attempt: int = 1,
    max_attempts: int | None = None,
    scheduled_for: datetime | None = None,
    cancel_requested: bool = False,
) -> Callable[..., Any]:
    """What runs the task as a worker would, here and without a job: `run_job(session, settle, attempt=3)(order=order)`.

    It takes the arguments as `enqueue` does. They are encoded, decoded and checked as for a job, the session and a
    `RunContext` are injected, and the result must be one that can be stored. It returns that result, or raises what
    the task raised; nothing is recorded, retried or interrupted. A task with a session runs in a savepoint of
    `session`, which is rolled back where it raises.

    - `session`: that of the test.
    - `task`: a task. One that is a class is `jobs.tasks["its name"]`.
    - `attempt`, `max_attempts`, `scheduled_for`, `cancel_requested`: what the task's `RunContext` says.

    Raises `ArgumentsError` for arguments that do not fit, and for a result that cannot be stored.
    """
    if not isinstance(task, Task):
        raise ArgumentsError(
            f"run_job takes a task, got {task!r:.200}: write @jobs.task above a function; a class that is a task is "
            "given as jobs.tasks['its name']"
        )
    check_integer("attempt", attempt, least=1, most=1_000_000)
    declaration, own = task.declaration, plain_session(session)
    most = declaration.defaults["max_attempts"] if max_attempts is None else max_attempts
    check_integer("max_attempts", most, least=1, most=1_000_000)

    def call(*args: Any, **kwargs: Any) -> Any:
        run = RunContext(
            0,
            0,
            declaration.name,
            declaration.defaults["queue"],
            attempt,
            most,
            deadline=None if declaration.timeout is None else time.monotonic() + declaration.timeout,
            scheduled_for=scheduled_for,
            cancel_requested=cancel_requested,
        )
        stored = declaration.codec.encode(own, task.bind(args, kwargs)).decode()
        with Savepoints(own).begin() if declaration.signature.wants_session else nullcontext():
            return _called(declaration, own, run, stored)

    return call


def _called(declaration: Declaration, session: Session, run: RunContext, stored: str) -> Any:
    signature = declaration.signature
    arguments = declaration.codec.load(session, declaration.codec.decode(stored))
    injected: list[Any] = [session] if signature.wants_session else []
    if signature.wants_context:
        injected.append(run)
    result = signature.call(injected, arguments)
    encode_result(result)
    return result
