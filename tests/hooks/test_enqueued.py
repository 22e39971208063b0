"""Handlers of "enqueued" are told of committed jobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import Jobs, Unique
from sqla_jobs.tasks.hooks import EnqueuedEvent


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)
told: list[tuple[str, str, int]] = []
committed: list[int] = []


@jobs.task
def send(n: int) -> None: ...


@jobs.task(unique=Unique("n"), queue="bills")
def bill(n: int) -> None: ...


@jobs.task(unique=Unique("n", on_conflict="replace", max_delay=None))
def index(n: int) -> None: ...


@jobs.task(queue="orders")
def order(session: Session) -> None:
    send.enqueue(session, 1)
    bill.enqueue_at_commit(session, 1)


@jobs.on("enqueued")
def tell(event: EnqueuedEvent) -> None:
    told.append((event.task, event.queue, event.number))
    with jobs._binding().session() as other:
        committed.append(other.scalar(select(func.count()).select_from(jobs.Job)) or 0)
    raise RuntimeError("no matter")


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


@pytest.fixture(autouse=True)
def forgotten(database: Engine) -> Iterator[None]:
    jobs.bind(database)
    yield
    told.clear()
    committed.clear()


def test_they_are_told_once_a_transaction_after_its_commit(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    send.enqueue(session, 1)
    with session.begin_nested():
        send.enqueue(session, 2)
    with session.begin_nested() as savepoint:
        send.enqueue(session, 3)
        bill.enqueue(session, 3)
        savepoint.rollback()
    send.options(queue="mail").enqueue(session, 4)
    send.enqueue_many(session, [{"n": n} for n in range(3)])
    session.flush()
    assert told == []
    session.commit()
    assert told == [("send", "default", 5), ("send", "mail", 1)]
    assert committed == [6, 6]
    assert "no matter" in caplog.text
    send.enqueue(session, 1)
    session.rollback()
    session.commit()
    assert len(told) == 2


@pytest.mark.parametrize("task", [bill, index])
def test_of_unique_jobs_only_those_that_were_inserted_count(session: Session, task: Any) -> None:
    for n in (1, 1, 2):
        task.enqueue(session, n)
    task.enqueue_many(session, [{"n": n} for n in (2, 3, 3, 4)])
    session.commit()
    task.enqueue(session, 1)
    session.commit()
    assert [number for _, _, number in told] == [4]


def test_late_enqueues_count_with_the_others(session: Session) -> None:
    bill.enqueue(session, 1)
    for n in (1, 2, 2):
        bill.enqueue_at_commit(session, n)
        send.enqueue_at_commit(session, n)
    session.commit()
    assert sorted(told) == [("bill", "bills", 2), ("send", "default", 3)]


def test_a_clock_tells_of_its_jobs(session: Session) -> None:
    session.add(jobs.Schedule(name="nightly", task="send", cron="0 * * * *", args={"n": 1}, queue="nights"))
    session.commit()
    assert jobs.clock().tick() == 0
    session.execute(update(jobs.Schedule).values(next_run_at=func.now()))
    session.commit()
    assert jobs.clock().tick() == 1
    assert told == [("send", "nights", 1)]


def test_the_commit_of_a_run_tells_what_it_has_enqueued(session: Session) -> None:
    order.enqueue(session)
    session.commit()
    jobs.worker(["orders"]).drain()
    assert told == [("order", "orders", 1), ("send", "default", 1), ("bill", "bills", 1)]


def test_the_owner_of_a_connection_is_not_told_what_a_session_on_it_enqueues(database: Engine) -> None:
    """The session's commit is none."""
    with database.connect() as connection, connection.begin(), Session(connection) as session:
        send.enqueue(session, 1)
        session.commit()
    assert told == []
