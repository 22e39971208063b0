"""Each run has a copy of its own of the context in which its worker started."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import Jobs, RunContext

JOBS = 20


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)
of_start: ContextVar[str] = ContextVar("of_start", default="nothing")
of_middleware: ContextVar[int] = ContextVar("of_middleware", default=0)
of_task: ContextVar[int] = ContextVar("of_task", default=0)
seen: list[tuple[str, int, int]] = []


@jobs.middleware
@contextmanager
def careless(run: RunContext) -> Generator[None]:
    of_middleware.set(of_middleware.get() + 1)  # never reset
    yield


def note() -> None:
    seen.append((of_start.get(), of_middleware.get(), of_task.get()))
    of_task.set(1)


@jobs.task
def plain() -> None:
    note()


@jobs.task
def transactional(session: Session) -> None:
    note()


@jobs.task
async def awaited() -> None:
    note()


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


@pytest.mark.parametrize("task", ["plain", "transactional", "awaited"])
def test_no_run_sees_what_another_has_set(database: Engine, task: str) -> None:
    seen.clear()
    with Session(database) as session:
        jobs.tasks[task].enqueue_many(session, [{}] * JOBS)
        session.commit()
    token = of_start.set("set before the worker started")
    try:
        assert jobs.worker(concurrency=2).drain() == JOBS
    finally:
        of_start.reset(token)
    assert seen == [("set before the worker started", 1, 0)] * JOBS
    assert (of_middleware.get(), of_task.get()) == (0, 0)
