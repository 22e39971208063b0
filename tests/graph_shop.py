"""An application whose jobs are after one another, for the tests of graphs with worker processes of their own."""

from __future__ import annotations

import time

from sqlalchemy import BigInteger
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tenacity import Retrying, wait_fixed

from sqla_jobs import Jobs, RunContext


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)
SOON = Retrying(wait=wait_fixed(0.05))


class Effect(Base):
    """What a job did, in the transaction of its run."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    n: Mapped[int]


@jobs.task
def nothing(n: int) -> None:
    """The cheapest job."""


@jobs.task(retry=SOON)
def write(session: Session, n: int, seconds: float = 0.0) -> int:
    """A transactional effect."""
    session.add(Effect(n=n))
    session.flush()
    time.sleep(seconds)
    return n


@jobs.task(retry=SOON)
def unpack(session: Session, run: RunContext, n: int, width: int) -> None:
    """A batch of its own, and a job after that in the batch of this one, which stays open for it."""
    session.add(Effect(n=n))
    inner = jobs.batch(session, name=f"of {n}")
    numbers = range(n + 1, n + width + 1)
    write.options(batch=inner).enqueue_many(session, ({"n": k, "seconds": 0.01} for k in numbers))
    write.options(after=inner, batch=run.batch).enqueue(session, n=n + width + 1)
    time.sleep(0.02)
