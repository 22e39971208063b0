"""An application with its jobs in several databases."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, Text, create_engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_jobs import ConcurrencyLimit, JobMixin, Jobs, RunContext


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


class Effect(Base):
    """What a job did; a doubled one shows as two rows of one n."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int]
    shard: Mapped[str]


class Meter:
    """How many runs this process has at once, and their order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        self.running = self.most = 0
        self.shards: list[str] = []
        """The database of each run, in the order of the starts."""

    @contextmanager
    def run(self, shard: str) -> Generator[None]:
        with self._lock:
            self.shards.append(shard)
            self.running += 1
            self.most = max(self.most, self.running)
        yield
        with self._lock:
            self.running -= 1


meter = Meter()
entered: list[str] = []
"""The worker contexts that were entered and left."""


def on_entering() -> None:
    """Is called when the worker context is entered. Tests replace it."""


@jobs.worker_context
@contextmanager
def resource() -> Generator[Meter]:
    entered.append("entered")
    on_entering()
    yield meter
    entered.append("left")


@jobs.task
def write(session: Session, run: RunContext, n: int, seconds: float = 0.0) -> None:
    """A transactional effect."""
    session.add(Effect(n=n, shard=run.shard))
    session.flush()
    time.sleep(seconds)


@jobs.task
def nap(run: RunContext, seconds: float = 0.0) -> None:
    with run.resources[Meter].run(run.shard):
        time.sleep(seconds)


@jobs.task
async def write_async(session: AsyncSession, run: RunContext, n: int) -> None:
    """A transactional effect of a coroutine."""
    session.add(Effect(n=n, shard=run.shard))
    await asyncio.sleep(0.001)


@jobs.task
def chain(session: Session, run: RunContext, n: int) -> None:
    """A job that enqueues another one."""
    write.enqueue(session, n=n)


engines: dict[str, Engine] = {}
"""The databases that `cross` enqueues in. Tests set them."""


@jobs.task
def cross(run: RunContext, left: int) -> None:
    """A job that enqueues another one in the next database."""
    time.sleep(0.001 * (left % 10))
    names = [*engines]
    with Session(engines[names[names.index(run.shard) - 1]]) as session:
        if left:
            cross.enqueue(session, left=left - 1)
        session.commit()


@jobs.task(limits=ConcurrencyLimit(1))
def alone(run: RunContext, seconds: float = 0.0) -> None:
    with run.resources[Meter].run(run.shard):
        time.sleep(seconds)
