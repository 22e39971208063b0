"""Tasks with hooks around them, for tests. What handlers are told is a row of `Told`, in a transaction of its own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

from sqlalchemy import BigInteger, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tenacity import Retrying, wait_fixed

from sqla_jobs import Jobs, RunContext, RunEvent


class Base(DeclarativeBase):
    pass


class Told(Base):
    """That a handler was told of an event."""

    __tablename__ = "told"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    task: Mapped[str] = mapped_column(Text)
    job_id: Mapped[int] = mapped_column(BigInteger)
    error: Mapped[str | None] = mapped_column(Text)
    request: Mapped[str | None] = mapped_column(Text)


jobs = Jobs(Base)
request: ContextVar[str] = ContextVar("request", default="none")
FAST = Retrying(wait=wait_fixed(0))


@jobs.headers
def current_request() -> dict[str, str]:
    return {} if request.get() == "none" else {"request": request.get()}


@jobs.middleware
@contextmanager
def in_request(run: RunContext) -> Generator[None]:
    token = request.set(run.headers.get("request", "none"))
    try:
        yield
    finally:
        request.reset(token)


@jobs.on("succeeded", "retried", "failed", "lost")
def tell(event: RunEvent) -> None:
    if event.headers.get("dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    with jobs._binding().transaction() as session:
        session.add(
            Told(
                name=event.name,
                task=event.task,
                job_id=event.job_id,
                error=event.error,
                request=event.headers.get("request"),
            )
        )


@jobs.task(queue="alerts", priority=-1)
def follow_up(session: Session, job_id: int, note: str = "failed") -> str:
    return f"job {job_id} {note}"


@jobs.task
def whose(run: RunContext) -> str:
    """The request that the middleware has set."""
    return request.get()


@jobs.task(on_failure=follow_up, retry=FAST, max_attempts=2)
def breaks(n: int) -> None:
    raise ValueError(f"no {n}")


@jobs.task(on_failure=follow_up, max_attempts=1)
def dies(seconds: float) -> None:
    """Long enough for a test to kill the process."""
    time.sleep(seconds)
