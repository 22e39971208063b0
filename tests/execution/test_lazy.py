"""Lazy tasks, whose transactions begin at the first use of their sessions."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from sqlalchemy import (
    Engine,
    ForeignKey,
    event,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import QueuePool

from sqla_jobs import Jobs
from tests.coroutines.rows import asynchronous
from tests.helpers import states, wait_until


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


class Line(Base):
    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int | None] = mapped_column(ForeignKey(Order.id))


jobs = Jobs(Base)
waiting, go_on = threading.Event(), threading.Event()
used: list[Session] = []


@pytest.fixture
def application() -> Jobs[Any]:
    waiting.clear()
    go_on.clear()
    used.clear()
    return jobs


def wait() -> None:
    """Stand for a call of another service, which takes ten seconds."""
    waiting.set()
    assert go_on.wait(20)


@jobs.task
def follow_up() -> None: ...


def write(session: Session, how: str) -> str:
    used.append(session)
    if how != "nothing":
        session.add(Line())
        follow_up.enqueue(session)
    if how == "raises":
        session.flush()
        raise ValueError(how)
    return how


@jobs.task(lazy=True, max_attempts=1)
def lazy(session: Session, how: str) -> str:
    wait()
    return write(session, how)


@jobs.task(lazy=True, max_attempts=1)
async def lazy_coroutine(session: AsyncSession, how: str) -> str:
    await asyncio.to_thread(wait)
    return await session.run_sync(write, how)


@jobs.task(max_attempts=1)
def eager(session: Session, how: str) -> str:
    wait()
    return write(session, how)


@jobs.task(lazy=True, max_attempts=1)
def begins_itself(session: Session, how: str) -> None:
    with session.begin():
        session.add(Line())
    raise ValueError(how)


@jobs.task(lazy=True, max_attempts=1)
async def coroutine_begins_itself(session: AsyncSession, how: str) -> None:
    async with session.begin():
        session.add(Line())
    raise ValueError(how)


LAZY = pytest.mark.parametrize("task", ["lazy", "lazy_coroutine", "lazy_coroutine by asyncpg"])


def bind(database: Engine, task: str) -> str:
    """Bind to the driver that `task` names, if any. Return the name of the task."""
    name, _, driver = task.partition(" by ")
    if driver:
        jobs.bind(database, async_bind=asynchronous(database, driver))
    return name


def in_transaction(session: Session) -> int:
    """The number of other sessions of the server that are inside of a transaction."""
    session.rollback()
    open_ones = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND xact_start IS NOT NULL AND state = 'idle in transaction' AND pid <> pg_backend_pid()"""
    found = session.execute(text(open_ones)).scalar_one()
    session.rollback()
    return int(found)


def enqueued(session: Session, task: str, **arguments: Any) -> int:
    job = jobs.tasks[task].enqueue(session, **arguments)
    session.commit()
    return job.id


def ended(session: Session, job_id: int) -> list[tuple[str, Any, str | None]]:
    session.rollback()
    of_job = select(jobs.Run.outcome, jobs.Run.result, jobs.Run.error_type).where(jobs.Run.job_id == job_id)
    return [(str(one.outcome), one.result, one.error_type) for one in session.execute(of_job.order_by(jobs.Run.id))]


def lines(session: Session) -> int:
    session.rollback()
    return len(session.scalars(select(Line)).all())


@pytest.mark.parametrize("task", ["begins_itself", "coroutine_begins_itself"])
def test_a_task_cannot_begin_and_commit_a_transaction_of_its_own(session: Session, database: Engine, task: str) -> None:
    job_id = enqueued(session, task, how="fails")
    with jobs.worker(clock=False):
        wait_until(lambda: states(session) == {job_id: "failed"})
    assert ended(session, job_id) == [("failed", None, "sqlalchemy.exc.InvalidRequestError")]
    assert lines(session) == 0


@pytest.mark.parametrize(
    ("task", "number"), [("lazy", 0), ("lazy_coroutine", 0), ("lazy_coroutine by asyncpg", 0), ("eager", 1)]
)
def test_no_transaction_is_open_before_the_session_is_used(
    session: Session, database: Engine, task: str, number: int
) -> None:
    name = bind(database, task)
    job_id, pool = enqueued(session, name, how="writes"), database.pool
    assert isinstance(pool, QueuePool)
    with jobs.worker(clock=False):
        assert waiting.wait(20)
        wait_until(lambda: in_transaction(session) == number)
        session.close()
        wait_until(lambda: pool.checkedout() == number)
        go_on.set()
        wait_until(lambda: list(states(session).values()) == ["succeeded", "succeeded"])  # the follow-up, too
    assert ended(session, job_id) == [("succeeded", "writes", None)]
    assert lines(session) == 1


@LAZY
@pytest.mark.parametrize(
    ("how", "outcome"),
    [
        ("nothing", ("succeeded", "nothing", None)),
        ("writes", ("succeeded", "writes", None)),
        ("raises", ("failed", None, "ValueError")),
    ],
)
def test_what_it_writes_and_its_outcome_are_one_commit(
    session: Session, database: Engine, task: str, how: str, outcome: tuple[str, Any, str | None]
) -> None:
    name, begun, committed = bind(database, task), list[Session](), list[Session]()
    go_on.set()
    job_id = enqueued(session, name, how=how)

    def note_begin(session: Session, *_: object) -> None:
        begun.append(session)

    def note_commit(session: Session) -> None:
        committed.append(session)

    event.listen(Session, "after_begin", note_begin)
    event.listen(Session, "after_commit", note_commit)
    try:
        with jobs.worker(clock=False) as worker:
            wait_until(lambda: worker.runs >= 1)
    finally:
        event.remove(Session, "after_begin", note_begin)
        event.remove(Session, "after_commit", note_commit)
    assert ended(session, job_id) == [outcome]
    assert lines(session) == (how == "writes")
    (own,) = used
    assert begun.count(own) == 1
    assert committed.count(own) == (how != "raises")


@LAZY
def test_one_that_has_lost_its_job_commits_nothing(session: Session, database: Engine, task: str) -> None:
    name = bind(database, task)
    job_id = enqueued(session, name, how="writes")
    with jobs.worker(clock=False) as worker:
        assert waiting.wait(20)
        session.execute(text("UPDATE sqla_jobs SET current_run_id = nextval('sqla_runs_id_seq')"))
        session.commit()
        go_on.set()
        wait_until(lambda: worker.runs == 1)
    assert lines(session) == 0
    assert ended(session, job_id) == []
