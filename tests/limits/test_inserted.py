"""Jobs that the library inserts by itself are behind their limits from the insert on, as those of `enqueue` are."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from sqla_jobs import ConcurrencyLimit, Jobs, RateLimit, Unique
from sqla_jobs.actions import schedules
from sqla_jobs.actions.audit import Changing
from tests.helpers import new_jobs, wait_until
from tests.limits.attempts import left


@pytest.fixture
def application() -> Jobs[Any]:
    return new_jobs()


@pytest.fixture
def jobs(application: Jobs[Any], database: Engine) -> Jobs[Any]:
    return application


BOOK = {"book": (["%all", "!book=7", "~book=7"], "!book=7")}


def book(jobs: Jobs[Any], **options: Any) -> None:
    in_order, rate = ConcurrencyLimit(1, key="account", ordered=True), RateLimit(5, per=1, name="all")

    @jobs.task(limits=[in_order, rate], fair_by="account", **options)
    def book(account: int) -> None: ...

    book.schedule("0 0 1 1 *", args={"account": 7})
    jobs.clock().tick()


def ticks(jobs: Jobs[Any], session: Session) -> None:
    """All schedules, once."""
    jobs.clock().tick()
    session.execute(text("UPDATE sqla_schedules SET next_run_at = now() - interval '1 s', last_run_at = NULL"))
    session.commit()
    assert jobs.clock().tick() > 0


@pytest.mark.parametrize("unique", [None, Unique()])
def test_jobs_of_a_schedule(jobs: Jobs[Any], session: Session, unique: Unique | None) -> None:
    @jobs.task
    def plain() -> None: ...

    book(jobs, unique=unique)
    plain.schedule("0 0 1 1 *")
    ticks(jobs, session)
    rows = session.execute(select(jobs.Job.task, jobs.Job.gates, jobs.Job.ordered_by))
    assert {task: (gates, order) for task, gates, order in rows} == {**BOOK, "plain": (None, None)}


def test_a_job_of_a_schedule_that_a_person_runs_now(jobs: Jobs[Any], session: Session) -> None:
    book(jobs)
    schedules.fire(Changing(session, jobs.models, jobs.tasks), "book")
    rows = session.execute(select(jobs.Job.task, jobs.Job.gates, jobs.Job.ordered_by))
    assert {task: (gates, order) for task, gates, order in rows} == BOOK


@pytest.mark.parametrize("inserted_by", ["a clock", "a failure"])
def test_they_start_at_once(jobs: Jobs[Any], database: Engine, session: Session, inserted_by: str) -> None:
    """Again and again, so that no look for jobs that lack gates comes by in between."""
    one = ConcurrencyLimit(1, name="one")

    @jobs.task(limits=one)
    def tell(job_id: int) -> None: ...

    @jobs.task(on_failure=tell, max_attempts=1)
    def fails() -> None:
        raise RuntimeError("as asked")

    @jobs.task(limits=one)
    def hourly() -> None: ...

    hourly.schedule("0 0 1 1 *")

    def insert() -> None:
        if inserted_by == "a clock":
            ticks(jobs, session)
        else:
            fails.enqueue(session)
            session.commit()

    task = "hourly" if inserted_by == "a clock" else "tell"
    with jobs.worker():
        for _ in range(5):
            insert()
            wait_until(lambda: left(database) == 0, timeout=10)
    waited = sorted(session.scalars(select(jobs.Job.started_at - jobs.Job.created_at).where(jobs.Job.task == task)))
    assert waited[2] < timedelta(seconds=0.5)
