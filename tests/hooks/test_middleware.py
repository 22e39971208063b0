"""What is put around each run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import DeclarationError, Jobs, RunContext
from sqla_jobs.testing import drain, run_job
from tests.helpers import as_id


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)
seen: list[str] = []


def noting(name: str) -> Callable[[RunContext], AbstractContextManager[None]]:
    @contextmanager
    def middleware(run: RunContext) -> Generator[None]:
        seen.append(f"{name} before {run.task}")
        try:
            yield
        except BaseException as error:
            seen.append(f"{name} after {type(error).__name__}")
            raise
        seen.append(f"{name} after")

    return middleware


jobs.middleware(noting("outer"))
jobs.middleware(noting("inner"))


@jobs.middleware
@contextmanager
def swallowing(run: RunContext) -> Generator[None]:
    try:
        yield
    except ZeroDivisionError:
        seen.append("swallowed")
    if run.task == "ends_badly":
        raise RuntimeError("of the middleware")


@jobs.middleware
@contextmanager
def refusing(run: RunContext) -> Generator[None]:
    if run.task == "refused":
        raise PermissionError("not today")
    yield


@jobs.task
def fine() -> None:
    seen.append("run")


@jobs.task(max_attempts=1)
def divides(session: Session) -> float:
    return 1 / 0


@jobs.task(max_attempts=1)
def refused() -> None:
    seen.append("run")


@jobs.task
def ends_badly() -> int:
    return 3


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


@pytest.fixture(autouse=True)
def forget() -> None:
    seen.clear()


def test_it_sees_what_the_run_raises_and_cannot_swallow_it(session: Session) -> None:
    job = divides.enqueue(session)
    drain(session, jobs, errors="record")
    assert seen[2:] == ["swallowed", "inner after ZeroDivisionError", "outer after ZeroDivisionError"]
    assert (job.state, job.runs[0].error_type) == ("failed", "ZeroDivisionError")


def test_one_that_raises_before_the_run_fails_the_attempt(session: Session) -> None:
    job = refused.enqueue(session)
    drain(session, jobs, errors="record")
    assert (job.state, job.runs[0].error) == ("failed", "not today")
    assert "run" not in seen


def test_one_that_raises_afterwards_changes_no_outcome(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    job = ends_badly.enqueue(session)
    drain(session, jobs, errors="record")
    assert (job.state, job.runs[0].result) == ("succeeded", 3)
    assert "middleware failed on exit" in caplog.text
    assert "of the middleware" in caplog.text


def test_run_job_calls_a_task_inside_of_it_too(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    run_job(session, fine)()
    assert seen == ["outer before fine", "inner before fine", "run", "inner after", "outer after"]
    with pytest.raises(ZeroDivisionError):
        run_job(session, divides)()
    assert seen[-1] == "outer after ZeroDivisionError"
    with pytest.raises(PermissionError, match="not today"):
        run_job(session, refused)()
    assert run_job(session, ends_badly)() == 3
    assert "middleware failed on exit" in caplog.text


def test_what_is_bound_around_runs_is_around_those_of_drain_too(database: Engine, session: Session) -> None:
    @contextmanager
    def context(run: RunContext | None) -> Generator[None]:
        if run is not None and run.attempt == 2:
            raise PermissionError("not again")
        seen.append(f"context of {run and run.task}")
        yield
        seen.append("context after")

    jobs.bind(database, context=context)
    fine.enqueue(session)
    drain(session, jobs)
    assert (seen[0], seen[1], seen[-1]) == ("context of fine", "outer before fine", "context after")
    seen.clear()
    assert run_job(session, fine)() is None
    assert (seen[0], seen[1], seen[-1]) == ("context of fine", "outer before fine", "context after")
    with pytest.raises(PermissionError, match="not again"):
        run_job(session, fine, attempt=2)()
    divides.options(max_attempts=2).enqueue(session)
    drain(session, jobs, errors="record")
    with pytest.raises(PermissionError, match="not again"):
        drain(session, jobs, ahead=60)


async def _coroutine(run: RunContext) -> None: ...


def _generator(run: RunContext) -> Iterator[None]:
    yield


@pytest.mark.parametrize("target", [_coroutine, _generator, nullcontext, lambda: None, 3], ids=as_id)
def test_what_cannot_surround_a_run_is_refused_when_it_is_declared(target: Any) -> None:
    with pytest.raises(DeclarationError):
        Jobs(type("Other", (DeclarativeBase,), {})).middleware(target)
