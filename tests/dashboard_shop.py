"""An application for the tests of the dashboard."""

from __future__ import annotations

import threading

from flask import Flask
from sqlalchemy import Text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tenacity import Retrying, wait_fixed

from sqla_jobs import JobMixin, Jobs, RunContext
from sqla_jobs.dashboard import allow_everyone, create_blueprint
from sqla_jobs.dashboard.access import Authorize

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}"


class Base(DeclarativeBase):
    pass


class MyJob(JobMixin):
    note: Mapped[str | None] = mapped_column(Text)


jobs = Jobs(Base, job_class=MyJob)
gate = threading.Event()
"""Closed until a test opens it."""


@jobs.task
def add(a: int, b: int = 0) -> int:
    return a + b


@jobs.task(max_attempts=2, retry=Retrying(wait=wait_fixed(0)))
def fail(message: str) -> None:
    raise ValueError(message)


@jobs.task(sensitive=["password"], max_attempts=1)
def login(user: str, password: str) -> str:
    if user == "nobody":
        raise ValueError(f"cannot log in with {password}")
    return f"in, by {password}"


@jobs.task(name=HOSTILE)
def hostile(value: str) -> str:
    return value


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


@jobs.task
def settle(session: Session, order: Order, others: list[Order]) -> int:
    return order.id


@jobs.task
def slow(run: RunContext) -> str:
    run.progress(0.5, "half way")
    while not gate.wait(0.01):
        pass
    return "done"


def create_app(authorize: Authorize = allow_everyone) -> Flask:
    """A web application with the dashboard under /ops."""
    app = Flask("tests.dashboard_shop")
    app.testing = True
    dashboard = create_blueprint(jobs, authorize=authorize, actor=lambda: "ada@example.com")
    app.register_blueprint(dashboard, url_prefix="/ops")
    return app
