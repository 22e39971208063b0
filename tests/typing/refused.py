"""Mistakes. Both type checkers refuse each line that is marked, and no other one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar, Unpack

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_jobs import (
    AsyncRunContext,
    JobMixin,
    Jobs,
    JobState,
    RunContext,
    RunEvent,
    Task,
    TaskOptions,
    Unique,
)
from sqla_jobs.encryption import Encrypted
from sqla_jobs.testing import assert_enqueued, drain, make_job, run_job

P = ParamSpec("P")
R = TypeVar("R")


class Base(DeclarativeBase):
    pass


class MyJob(JobMixin):
    tenant_id: Mapped[int | None] = mapped_column()


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


jobs = Jobs(Base, job_class=MyJob)
db = SQLAlchemy(model_class=Base)


@jobs.task
def send_email(email: str, body: str, *, copies: int = 1) -> None: ...


@jobs.task(queue="billing")
def settle(session: Session, run: RunContext, order: Order, lines: list[dict[str, int]]) -> int:
    return 1


@jobs.task
def archive(session: Session, order: Order) -> None: ...


@jobs.task
def watch(run: RunContext, minutes: int) -> None: ...


@jobs.task
def tidy() -> None: ...


@jobs.task
async def fetch(session: AsyncSession, run: AsyncRunContext, url: str) -> bytes:
    return b""


@jobs.task
async def ping(url: str) -> int:
    return 1


@dataclass
class Mail:
    email: str


def wrong_calls() -> None:
    send_email("a@b.c")  # error
    tidy(1)  # error


def wrong_arguments(session: Session, order: Order) -> None:
    send_email.enqueue(session, email=7, body="hi")  # error
    settle.enqueue(session, order=7, lines=[])  # error
    send_email.options(queue="x").enqueue(session, email=7, body="hi")  # error


def at_commit(session: Session, run: RunContext, order: Order) -> None:
    send_email.enqueue_at_commit(session, email=7, body="hi")  # error
    send_email.options(queue="x").enqueue_at_commit(session, email="a@b.c")  # error
    settle.enqueue_at_commit(session, session, run, order, [])  # error
    _: JobMixin = send_email.enqueue_at_commit(session, email="a@b.c", body="hi")  # error


def missing_arguments(session: Session, order: Order) -> None:
    send_email.enqueue(session, email="a@b.c")  # error
    send_email.enqueue(email="a@b.c", body="hi")  # error
    archive.enqueue(session)  # error


def unknown_arguments(session: Session, order: Order) -> None:
    send_email.enqueue(session, email="a@b.c", body="hi", cc="d@e.f")  # error
    send_email.enqueue(session, "a@b.c", "hi", 2)  # error
    tidy.enqueue(session, delay=5)  # error


def injected_arguments(session: Session, run: RunContext, order: Order) -> None:
    archive.enqueue(session, session, order)  # error
    settle.enqueue(session, session, run, order, [])  # error
    watch.enqueue(session, run, 5)  # error


def wrong_sessions(session: AsyncSession) -> None:
    tidy.enqueue(session)  # error
    send_email.enqueue_many(session, [])  # error
    tidy.enqueue(db)  # error
    jobs.cancel("7", 7)  # error


def wrong_options(session: Session) -> None:
    send_email.options(dely=5)  # error
    send_email.options(priority="high")  # error
    send_email.enqueue_many(session, ["a@b.c"])  # error
    send_email.enqueue_many(session, [], returning=1)  # error
    jobs.worker("default", threads=4)  # error


@jobs.task
def log_in(user: str, password: Encrypted[str]) -> Encrypted[str]:
    return password


def wrong_secrets(session: Session) -> None:
    log_in.enqueue(session, "ada", password=7)  # error
    log_in("ada", password=b"secret")  # error
    log_in.result(7) + 1  # error


def wrong_changes(session: Session) -> None:
    jobs.select(state="failed")  # error
    jobs.select(states=[3])  # error
    jobs.select(created_before="yesterday")  # error
    jobs.retry(session, where="failed")  # error
    jobs.retry(session, where=jobs.select(), kill=True)  # error
    jobs.retry(session, "7")  # error
    jobs.erase(session, where={"args": {"customer": 17}})  # error
    jobs.cancel(session, 7) + 1  # error


def wrong_numbers(session: Session) -> None:
    send_email.enqueue_many(session, []) + 1  # error
    drain(session, jobs) + 1  # error
    drain(session, jobs).runs = 1  # error


def wrapped(**options: Unpack[TaskOptions]) -> Callable[[Callable[P, R]], Task[P, R, MyJob]]:
    return jobs.task(**options)


@wrapped(queue="mail")
def remind(session: Session, email: str) -> None: ...


def wrong_wraps(session: Session) -> None:
    remind.enqueue(session, email=7)  # error
    remind.enqueue(session, session, email="a@b.c")  # error
    wrapped(que="mail")  # error


@jobs.task(que="mail")  # error
def wrong_name() -> None: ...


@jobs.task(retention="erase")  # error
def wrong_retention() -> None: ...


@jobs.task(unique="account")  # error
def wrong_unique() -> None: ...


def wrong_uniques(session: Session) -> None:
    Unique("account", on_conflict="replace")  # error
    Unique("account", on_conflict="raise", max_delay=60)  # error
    Unique(7)  # error
    send_email.options(unique=True)  # error


def told_of_a_run(event: RunEvent) -> None: ...


def wrong_hooks(run: RunContext) -> None:
    jobs.on("enqueued")(told_of_a_run)  # error
    jobs.worker_context(send_email)  # error
    jobs.middleware(watch)  # error
    run.resources["order"]  # error


def wrong_states(job: MyJob) -> None:
    job.state = JobState.nope  # error
    job.nope = 1  # error


Jobs(Base, prefixes="x")  # error
Jobs(Base, job_class=Order)  # error
Jobs("shop")  # error
jobs.bind("postgresql+psycopg://localhost/shop")  # error


def wrong_tests(session: Session, order: Order, asession: AsyncSession) -> None:
    run_job(session, send_email)(email="a@b.c")  # error
    run_job(session, settle)(order=7, lines=[])  # error
    run_job(session, archive, attempts=3)  # error
    run_job(session, Mail)  # error
    assert_enqueued(asession, archive)  # error
    drain(session, jobs, errors="ignore")  # error
    drain(asession, jobs)  # error
    make_job(session, archive, state="done")  # error


async def wrong_coroutines(session: Session, asession: AsyncSession, run: AsyncRunContext) -> None:
    await ping(uri="x")  # error
    ping("x") + 1  # error
    ping.enqueue(asession, url="x")  # error
    await asession.run_sync(ping.enqueue, uri="x")  # error
    await asession.run_sync(fetch.enqueue, asession, run, "x")  # error
    await asession.run_sync(jobs.cancel, "7")  # error
    await run_job(asession, ping)(uri="x")  # error
    await run_job(session, archive)(order=Order())  # error
    ping.options(batch=run.batch)  # error
    (await run.sleep("rest")) + 1  # error


def wrong_steps(session: Session, asession: AsyncSession, run: RunContext) -> None:
    run.step("sum", add, 1, "2")  # error
    run.step("sum", add, 1, 2).upper()  # error
    run.step("ping", ping_once, "x") + 1  # error
    run.sleep("rest")  # error
    run.wait_for("approved", Order)  # error
    jobs.signal(asession, 7, "approved")  # error


def add(one: int, other: int) -> int:
    return one + other


async def ping_once(url: str) -> int:
    return 1
