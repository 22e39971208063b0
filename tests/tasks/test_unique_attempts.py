"""A job that replaces another one begins with its own attempts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import DeclarativeBase, Session
from tenacity import Retrying, stop_after_delay, wait_fixed

from sqla_jobs import JobMixin, Jobs, Unique
from sqla_jobs.queries.expressions import Tables
from sqla_jobs.queries.sql_text import filled
from sqla_jobs.testing import drain


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)
REPLACE = Unique("account", on_conflict="replace", max_delay=600)
DAY = timedelta(days=1)


@jobs.task(max_attempts=2, unique=REPLACE, retry=Retrying(wait=wait_fixed(3600)))
def import_twice(account: int) -> None:
    raise ValueError


@jobs.task(unique=REPLACE, retry=Retrying(wait=wait_fixed(7200), stop=stop_after_delay(10_000)))
def import_for_hours(account: int) -> None:
    raise ValueError


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        yield session


def attempts(session: Session, job: JobMixin) -> list[tuple[int, str]]:
    session.expire_all()
    return [(run.attempt, str(run.outcome)) for run in job.runs]


def test_a_replaced_job_has_all_its_attempts(session: Session) -> None:
    job = import_twice.enqueue(session, account=17)
    drain(session, jobs, errors="record")
    assert import_twice.enqueue(session, account=17) is job
    assert (job.state, job.attempt, job.started_at) == ("queued", 0, None)
    drain(session, jobs, errors="record")
    assert job.state == "scheduled"
    drain(session, jobs, errors="record", ahead=DAY)
    assert (job.state, attempts(session, job)) == ("failed", [(1, "retried"), (1, "retried"), (2, "failed")])


def test_the_retry_policy_counts_time_from_the_first_start_of_the_new_job(session: Session) -> None:
    job = import_for_hours.enqueue(session, account=17)
    drain(session, jobs, errors="record")
    session.execute(text("UPDATE sqla_jobs SET created_at = created_at - interval '1 day'"))
    session.execute(text("UPDATE sqla_runs SET started_at = started_at - interval '1 day'"))
    import_for_hours.options(delay=500).enqueue(session, account=17)
    session.refresh(job)
    assert job.run_at - job.created_at > timedelta(seconds=400)  # and so does max_delay
    for _ in range(2):
        session.execute(text("UPDATE sqla_jobs SET run_at = clock_timestamp()"))
        drain(session, jobs, errors="record")
    assert (job.state, [attempt for attempt, _ in attempts(session, job)]) == ("scheduled", [1, 1, 2])


def test_the_losses_of_a_replaced_job_do_not_count(session: Session) -> None:
    job = import_twice.enqueue(session, account=17)
    drain(session, jobs, errors="record")
    session.execute(text("UPDATE sqla_runs SET outcome = 'lost'"))
    losses = text(filled("SELECT $losses FROM $jobs j", Tables(jobs._models)))
    assert session.scalar(losses) == 1
    import_twice.options(delay=60, max_lost=3).enqueue(session, account=17)
    assert session.scalar(losses) == 0
    assert jobs.retry(session, job)  # which goes on after the attempt that a loss gave back
    session.refresh(job)
    assert (job.state, job.attempt) == ("queued", 0)
