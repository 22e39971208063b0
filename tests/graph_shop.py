"""An application whose jobs are after one another, for the tests of graphs with worker processes of their own."""

from __future__ import annotations

import time

from sqlalchemy import BigInteger
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tenacity import Retrying, wait_fixed

from sqla_jobs import Jobs


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)
SOON = Retrying(wait=wait_fixed(0.05))


class Effect(Base):
    """What a job did, in the transaction of its run."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    n: Mapped[int]


@jobs.task(retry=SOON)
def write(session: Session, n: int, seconds: float = 0.0) -> int:
    """A transactional effect."""
    session.add(Effect(n=n))
    session.flush()
    time.sleep(seconds)
    return n
