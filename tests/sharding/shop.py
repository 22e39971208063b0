"""An application with its jobs in several databases."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

from sqlalchemy import Text, create_engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_jobs import AsyncRunContext, JobMixin, Jobs, RunContext
from sqla_jobs.database import outages


class Base(DeclarativeBase):
    pass


class TenantJob(JobMixin):
    tenant: Mapped[str | None] = mapped_column(Text)


jobs = Jobs(Base, job_class=TenantJob)


def bound() -> Jobs[TenantJob]:
    """The application as one that binds itself, to the databases that the file SHARDS names."""
    urls = json.loads(Path(os.environ["SHARDS"]).read_text())
    jobs.bind({name: create_engine(url) for name, url in urls.items()})
    return jobs


def impatient() -> Jobs[TenantJob]:
    """The application in processes that try for only a second to reach a database at the start."""
    outages._RESTART = 1.0
    return bound() if "SHARDS" in os.environ else jobs


class Effect(Base):
    """What a job did; a doubled one shows as two rows of one n."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int]
    shard: Mapped[str]


@jobs.task
def write(session: Session, run: RunContext, n: int, seconds: float = 0.0) -> None:
    """A transactional effect."""
    session.add(Effect(n=n, shard=run.shard))
    session.flush()
    time.sleep(seconds)


@jobs.task
def nap(seconds: float = 0.0) -> None:
    time.sleep(seconds)


@jobs.task(max_attempts=1)
def fail() -> None:
    raise ValueError("a failure")


@jobs.task
async def write_async(session: AsyncSession, run: AsyncRunContext, n: int) -> None:
    """A transactional effect of a coroutine."""
    session.add(Effect(n=n, shard=run.shard))
    await asyncio.sleep(0.001)


@jobs.task
def chain(session: Session, run: RunContext, n: int) -> None:
    """A job that enqueues another one."""
    write.enqueue(session, n=n)
