"""What a session reads of coroutine tasks, as committed now, and the asynchronous engines of their tests."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session

from sqla_jobs import JobMixin
from sqla_jobs.execution.held_job import Attempt
from sqla_jobs.worker import Worker
from tests.coroutine_shop import Effect, jobs


def job(session: Session, job_id: int) -> JobMixin:
    session.rollback()
    return session.get_one(jobs.Job, job_id, populate_existing=True)


def outcomes(session: Session, job_id: int) -> list[str]:
    session.rollback()
    rows = session.scalars(select(jobs.Run.outcome).where(jobs.Run.job_id == job_id).order_by(jobs.Run.id))
    return [str(outcome) for outcome in rows]


def effects(session: Session) -> list[int]:
    session.rollback()
    return sorted(session.scalars(select(Effect.n)))


def asynchronous(engine: Engine, driver: str = "psycopg", **options: Any) -> AsyncEngine:
    return create_async_engine(engine.url.set(drivername=f"postgresql+{driver}"), **options)


def running(worker: Worker) -> list[Attempt]:
    """Return the attempts that run in a worker that has started."""
    parts = worker._parts
    assert parts is not None
    return parts.runners.running
