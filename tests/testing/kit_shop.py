"""An application for tests of the kit: arguments of each kind, options, unique tasks and limits."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

from sqlalchemy import Text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tenacity import Retrying, retry_if_exception_type

from sqla_jobs import ConcurrencyLimit, JobMixin, Jobs, RunContext, Unique


class Base(DeclarativeBase):
    pass


class ShopJob(JobMixin):
    tenant: Mapped[str | None] = mapped_column(Text)


jobs = Jobs(Base, job_class=ShopJob, prefix="kit_")


class Order(Base):
    __tablename__ = "kit_orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="open")


@jobs.task
def send(email: str, body: str = "hello", tags: list[str] | None = None) -> None: ...


@jobs.task(sensitive=["token"], aliases=["old_charge"])
def charge(amount: Decimal, token: str, due: date | None = None) -> None: ...


@jobs.task(timeout=30.0)
def settle(session: Session, run: RunContext, order: Order, status: str = "settled") -> dict[str, Any]:
    order.status = status
    session.flush()
    if status == "refused":
        raise ValueError("refused")
    return {"attempt": run.attempt, "most": run.max_attempts, "stop": run.cancel_requested}


@jobs.task
def remaining(run: RunContext) -> float | None:
    return run.remaining


@jobs.task
def answers(what: str) -> Any:
    return object() if what == "object" else what


@jobs.task
def greet(name: str) -> str:
    return f"Hello {name}"


@jobs.task(unique=Unique(key="account"))
def sync(account: int, force: bool = False) -> None: ...


@jobs.task(limits=ConcurrencyLimit(1, key="account"))
def fetch(account: int) -> None: ...


@jobs.task(retry=Retrying(retry=retry_if_exception_type(ConnectionError)))
def call_the_bank() -> None: ...
