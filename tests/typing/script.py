"""A script: a task of each form, enqueued in each way, and a worker."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, NewType, ParamSpec, TypeVar, Unpack, assert_type
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import Engine, ForeignKey, create_engine, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential
from typing_extensions import TypeAliasType

from sqla_jobs import (
    AsyncRunContext,
    BatchCounts,
    Cancel,
    JobExists,
    JobMixin,
    Jobs,
    JobState,
    JobUpdate,
    RunContext,
    RunOutcome,
    Snooze,
    Task,
    TaskOptions,
    Unique,
)
from sqla_jobs.encryption import Encrypted
from sqla_jobs.tasks.hooks import EnqueuedEvent

log = logging.getLogger(__name__)


class Base(DeclarativeBase):
    pass


engine = create_engine("postgresql+psycopg://localhost/shop")
factory = sessionmaker(engine)
jobs = Jobs(Base, prefix="shop_", modules=["shop.mail", "shop.billing.tasks"], bind=factory)


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    total: Mapped[Decimal]
    job_id: Mapped[int | None] = mapped_column(ForeignKey(jobs.Job.id, ondelete="SET NULL"))
    job: Mapped[JobMixin | None] = relationship(jobs.Job)


class Address(BaseModel):
    city: str


class TracedSession(Session):
    """A Session of the application's own."""


Given = NewType("Given", AsyncSession)
GivenAlias = TypeAliasType("GivenAlias", Given)
Dependency = Annotated[AsyncSession, "a dependency"]
Context = TypeAliasType("Context", RunContext)


@jobs.task
async def by_new_type(session: Given, number: int) -> None: ...


@jobs.task
async def by_alias(session: GivenAlias, run: Context, number: int) -> None: ...


@jobs.task
async def by_dependency(session: Dependency, run: Context, number: int) -> None: ...


def with_other_names(session: Session) -> None:
    by_new_type.enqueue(session, number=1)
    by_alias.enqueue(session, number=1)
    by_dependency.enqueue(session, number=1)


@jobs.task
def send_email(email: str, body: str, *, copies: int = 1) -> None:
    log.info("to %s: %s, %d times", email, body, copies)


@jobs.task(
    name="mail.send",
    queue="mail",
    priority=-5,
    max_attempts=25,
    timeout=30.0,
    aliases=["old.name"],
    sensitive=["password"],
    retry=Retrying(
        stop=stop_after_attempt(5), wait=wait_exponential(max=60), retry=retry_if_exception_type(ConnectionError)
    ),
)
def send_password(email: str, password: Encrypted[str]) -> str:
    return email


def wait_for(session: Session) -> None:
    job = send_password.enqueue(session, email="a@b.c", password="x")
    session.commit()
    assert_type(send_password.result(job, timeout=10), str)
    assert_type(settle_all.result(job.id), int)
    assert_type(jobs.wait(job, timeout=10), JobMixin)
    for update in jobs.follow(job.id):
        assert_type(update, JobUpdate)
        assert_type(update.progress, float | None)


def wait_for_a_batch(session: Session) -> None:
    batch = jobs.batch(session, name="import 17")
    assert_type(jobs.wait(batch, timeout=10), BatchCounts)
    for counts in jobs.follow(batch):
        assert_type(counts, BatchCounts)
        assert_type(counts.seconds_left, float | None)


async def wait_in_a_loop(job: JobMixin) -> None:
    assert_type(await jobs.wait_async(job), JobMixin)
    assert_type(await send_password.result_async(job, timeout=10), str)
    assert_type(await jobs.wait_async(jobs.Batch()), BatchCounts)
    async for update in jobs.follow(job, timeout=1.5):
        assert_type(update.state, JobState)


def tenant_of(arguments: Mapping[str, Any]) -> tuple[str, int]:
    return "tenant", arguments["tenant"]


@jobs.task(unique=Unique(tenant_of, on_conflict="raise", per=timedelta(days=1)))
def report(tenant: int) -> None: ...


def paying(arguments: Mapping[str, Any]) -> str | None:
    return None if arguments["tenant"] == 1 else str(arguments["tenant"])


@jobs.task(unique=Unique(paying))
def bill(tenant: int) -> None: ...


@jobs.task(unique=Unique(["tenant"], on_conflict="replace", max_delay=600))
def index(tenant: int, since: datetime) -> None: ...


def unique_jobs(session: Session) -> None:
    try:
        report.enqueue(session, tenant=1)
    except JobExists as found:
        assert_type(found.job, JobMixin)
    forever = Unique("tenant", on_conflict="replace", max_delay=None)
    index.options(unique=forever, delay=60).enqueue(session, 1, datetime.now(UTC))
    send_email.options(unique_key="welcome-17", unique=Unique(per=3600))
    bill.enqueue_at_commit(session, 1)
    index.options(delay=60).enqueue_at_commit(session, 1, since=datetime.now(UTC))
    settle.enqueue_at_commit(session, Order(), note="later")
    watch.enqueue_at_commit(session, account=UUID(int=1), since=datetime.now(UTC))
    assert_type(bill.enqueue(session, 1).is_new, bool)
    bill.options(unique=Unique(key=None, on_conflict="return")).enqueue(session, 1)


@jobs.task(retry=lambda error, attempt: 10.0 if attempt < 5 else None)
def persist(number: int) -> None: ...


@jobs.task(timeout=timedelta(minutes=1), delay=60, retention={"succeeded": "erase", "failed": None, "cancelled": 60})
def settle(session: Session, run: RunContext, order: Order, note: str = "") -> dict[str, Any]:
    run.progress(0.5, "half way")
    if run.cancel_requested:
        raise Cancel("not wanted any more")
    if run.remaining is not None and run.remaining < 1:
        raise Snooze(60)
    session.add(order)
    send_email.enqueue(session, email="a@b.c", body=f"settled in attempt {run.attempt}")
    return {"total": str(order.total)}


@jobs.on("enqueued")
def count(event: EnqueuedEvent) -> None:
    assert_type((event.task, event.queue, event.number), tuple[str, str, int])


P = ParamSpec("P")
R = TypeVar("R")


def background(**options: Unpack[TaskOptions]) -> Callable[[Callable[P, R]], Task[P, R, JobMixin]]:
    """A decorator of the application's own, with its own defaults."""
    chosen: TaskOptions = {"queue": "background", "max_attempts": 5, **options}
    return jobs.task(**chosen)


def audited(function: Callable[P, R]) -> Task[P, R, JobMixin]:
    """A decorator of the application's own, without options."""
    task = jobs.task(function)
    log.info("declared %s", task.name)
    return task


@background(timeout=60)
def thumbnail(session: Session, photo: int, *, width: int = 100) -> str:
    return f"{photo} of {width}"


@audited
async def rotate(session: AsyncSession, run: AsyncRunContext, photo: int) -> int:
    return photo


def with_wrappers(session: Session) -> None:
    assert_type(thumbnail.enqueue(session, 7, width=3), JobMixin)
    assert_type(thumbnail(session, photo=7), str)
    assert_type(rotate.enqueue(session, photo=7), JobMixin)


@jobs.worker_context
@contextmanager
def opened_engine() -> Generator[Engine]:
    yield engine


@jobs.worker_context
@asynccontextmanager
async def address() -> AsyncGenerator[Address]:
    yield Address(city="Paris")


@jobs.middleware
@asynccontextmanager
async def counted(run: RunContext) -> AsyncGenerator[None]:
    yield


@jobs.task
def uses(run: RunContext, number: int) -> str:
    assert_type(run.resources[Engine], Engine)
    return run.resources[Address].city


@jobs.task
def settle_all(session: Session, orders: list[Order], to: Address | None = None) -> int:
    return len(orders)


@jobs.task
def settle_traced(session: TracedSession, order: Order | None) -> None: ...


@jobs.task
def watch(run: RunContext, *, account: UUID, since: datetime) -> None: ...


@jobs.task
def keep(value: Any, note: str = "") -> None: ...


@jobs.task
def tidy() -> None: ...


def rows() -> Iterator[dict[str, Any]]:
    for number in range(1_000_000):
        yield {"email": f"{number}@b.c", "body": "hi"}


def enqueue(session: Session, order: Order) -> None:
    job = send_email.enqueue(session, email="a@b.c", body="hi")
    assert_type(job, JobMixin)
    send_email.enqueue(session, "a@b.c", "hi", copies=2)
    send_password.enqueue(session, "a@b.c", password="…")
    assert_type(settle.enqueue(session, order=order), JobMixin)
    settle.enqueue(session, order, "by position")
    settle_all.enqueue(session, [order], to=Address(city="Paris"))
    settle_traced.enqueue(session, order=None)
    watch.enqueue(session, account=UUID(int=1), since=datetime.now(UTC))
    assert_type(keep.enqueue(session, value=[1, 2], note="two"), JobMixin)
    keep.enqueue(session, {"a": None})
    tidy.enqueue(session)
    order.job = job

    later = send_email.options(delay=timedelta(minutes=5), queue="slow", priority=10, max_attempts=3, unique_key="k")
    assert_type(later.enqueue(session, email="a@b.c", body="hi"), JobMixin)
    settle.options(delay=2.5).enqueue(session, order=order)
    settle_all.options(run_at=datetime.now(UTC), columns={"tenant_id": 3}).enqueue(session, orders=[order])
    tidy.options(delay=None, queue=None).enqueue(session)

    count = send_email.enqueue_many(session, rows())
    assert_type(count.inserted + count.replaced + count.skipped, int)
    assert_type(send_email.enqueue_many(session, rows(), returning=True), list[int])
    send_email.options(queue="bulk").enqueue_many(session, [{"email": "a@b.c", "body": "hi"}])

    by_name = jobs.tasks["mail.send"]
    assert_type(by_name.enqueue(session, email="a@b.c", password="…"), JobMixin)
    by_name.options(delay=5).enqueue(session, email="a@b.c", password="…")
    if "tidy" in jobs.tasks and len(jobs.tasks) > 1:
        jobs.tasks["tidy"].enqueue(session)


def look(session: Session) -> None:
    failed = session.scalars(select(jobs.Job).where(jobs.Job.state == "failed", jobs.Job.run_at < func.now())).all()
    for job in failed:
        assert_type(job, JobMixin)
        assert_type(job.state, JobState)
        for run in job.runs:
            assert_type(run.outcome, RunOutcome)
            assert_type(run.job, JobMixin | None)
            log.info("%s %s %s", run.id, run.started_at.isoformat(), run.error or "")
    states = select(jobs.Job.state, func.count()).group_by(jobs.Job.state)
    assert_type(dict(session.execute(states).tuples().all()), dict[JobState, int])
    waiting = select(jobs.Job.id).where(jobs.Job.state.in_([JobState.queued, JobState.scheduled]))
    assert_type(list(session.scalars(waiting)), list[int])
    paused = session.scalars(select(jobs.Queue.name).where(jobs.Queue.paused_at.is_not(None)))
    alive = session.scalars(select(jobs.Process).order_by(jobs.Process.heartbeat_at)).first()
    schedule = session.scalars(select(jobs.Schedule).where(jobs.Schedule.enabled)).first()
    log.info("%s %s %s", paused.all(), alive and alive.host, schedule and schedule.cron)


def work() -> None:
    jobs.bind(engine)
    assert_type(jobs.worker(["default", "mail"], concurrency=2, bind=lambda: Session(engine)).drain(), int)
    jobs.worker(queues={"default": 8, "mail": 2}, heartbeat=1.0, lease=10.0, poll=0.5, grace=5).run()
