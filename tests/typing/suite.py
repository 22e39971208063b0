"""The tests of an application, with `sqla_jobs.testing`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import assert_type

import pytest
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_jobs import ArgumentsError, JobMixin, Jobs, JobState, RunContext, RunOutcome
from sqla_jobs.postgres import local_postgres
from sqla_jobs.testing import Drained, drain


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    settled: Mapped[bool] = mapped_column(default=False)


jobs = Jobs(Base)


@jobs.task
def settle(session: Session, order: Order) -> None:
    order.settled = True


@jobs.task
def count(run: RunContext, to: int) -> int:
    return to


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    with local_postgres() as url:
        assert_type(url, str)
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        yield engine
        engine.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    with engine.connect() as connection, connection.begin() as outer:
        yield Session(connection, join_transaction_mode="create_savepoint")
        outer.rollback()


def test_an_order_is_settled(session: Session) -> None:
    order = Order()
    session.add(order)
    job = settle.enqueue(session, order=order)
    assert_type(drain(jobs, session), Drained)
    assert order.settled
    assert job.state == JobState.succeeded
    assert [run.outcome for run in job.runs] == [RunOutcome.succeeded]


def test_a_count_is_given_back(session: Session) -> None:
    assert_type(
        count(RunContext(job_id=1, run_id=2, task="count", queue="default", attempt=1, max_attempts=25), to=3), int
    )
    job = count.options(delay=60).enqueue(session, to=3)
    assert_type(job, JobMixin)
    assert drain(jobs, session, queues=["default"], ahead=timedelta(minutes=2), max_runs=10) == 1
    assert session.scalars(select(jobs.Run.result)).one() == 3


def test_another_argument_is_refused(session: Session) -> None:
    with pytest.raises(ArgumentsError):
        jobs.tasks["count"].enqueue(session, until=3)


def test_a_worker_runs_it(engine: Engine) -> None:
    with Session(engine) as session:
        count.enqueue(session, to=3)
        session.commit()
    with jobs.worker(bind=engine) as worker:
        worker.stop()
    assert jobs.worker(bind=engine).drain() == 0
