"""Tasks with limits, for tests; what they do is a row of `Step`, written beside their own business."""

from __future__ import annotations

import time

from sqlalchemy import BigInteger
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tenacity import Retrying, wait_fixed

from sqla_jobs import ConcurrencyLimit, Jobs, RateLimit, RunContext


class Base(DeclarativeBase):
    pass


class Step(Base):
    """That a job did something."""

    __tablename__ = "steps"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    n: Mapped[int]


jobs = Jobs(Base)


@jobs.task(limits=ConcurrencyLimit(2))
def pair(n: int, seconds: float = 0.0) -> None:
    time.sleep(seconds)


@jobs.task(limits=ConcurrencyLimit(1), max_attempts=1)
def busy(seconds: float) -> None:
    """Such as can be interrupted."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.01)


@jobs.task(limits=ConcurrencyLimit(1, key="account"))
def keyed(account: int, seconds: float = 0.0) -> None:
    time.sleep(seconds)


@jobs.task(limits=ConcurrencyLimit(5, key="account"))
def roomy(account: int) -> None: ...


@jobs.task(limits=ConcurrencyLimit(1, key="account", ordered=True))
def ordered(run: RunContext, account: int, n: int, failures: int = 0) -> int:
    if run.attempt <= failures:
        raise RuntimeError("not yet")
    return n


@jobs.task(limits=ConcurrencyLimit(1, key="account", ordered="hold"), max_attempts=1)
def held(account: int, fails: bool = False) -> None:
    if fails:
        raise RuntimeError("as asked")


@jobs.task(limits=RateLimit(5, per=1.0))
def rated(n: int) -> None:
    pass


@jobs.task(limits=ConcurrencyLimit(1000, key="key"))
def wide(key: int, n: int) -> None: ...


@jobs.task(limits=RateLimit(100, per=1.0))
def fast(n: int) -> None: ...


@jobs.task(limits=RateLimit(300, per=1.0, burst=1))
def dripping(n: int) -> None: ...


@jobs.task(limits=RateLimit(5, per=1.0, key="account"))
def paced(account: int) -> None:
    pass


@jobs.task(limits=ConcurrencyLimit(3, name="narrow"))
def only(n: int) -> None:
    pass


@jobs.task(limits=[ConcurrencyLimit(3, name="stripe"), RateLimit(1000, per=1.0, name="stripe")])
def charge(n: int, seconds: float = 0.0) -> None:
    time.sleep(seconds)


@jobs.task(limits=[ConcurrencyLimit(3, name="stripe"), ConcurrencyLimit(1, key=["tenant", "n"])])
def refund(session: Session, tenant: str, n: int, seconds: float = 0.0) -> None:
    session.add(Step(n=n))
    time.sleep(seconds)


@jobs.task(limits=ConcurrencyLimit(1, key=lambda arguments: arguments["to"].lower()))
def mail(to: str) -> None: ...


@jobs.task(fair_by="tenant")
def fair(tenant: str) -> None:
    time.sleep(0.002)


@jobs.task
def plain(n: int, seconds: float = 0.0) -> None:
    time.sleep(seconds)


@jobs.task(retry=Retrying(wait=wait_fixed(1.0)), max_attempts=3)
def flaky(run: RunContext, failures: int) -> None:
    if run.attempt <= failures:
        raise RuntimeError("not yet")


@jobs.task
def after_failure(job_id: int) -> None: ...


@jobs.task(on_failure=after_failure, max_attempts=1)
def failing() -> None:
    raise RuntimeError("as asked")
