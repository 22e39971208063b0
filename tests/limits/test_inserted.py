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

NEVER = "0 0 1 1 *"


@pytest.fixture
def application() -> Jobs[Any]:
    return new_jobs()


def tick(jobs: Jobs[Any], session: Session) -> None:
    """Fire each schedule once."""
    jobs.clock().tick()
    session.execute(text("UPDATE sqla_schedules SET next_run_at = now() - interval '1 s'"))
    session.commit()
    assert jobs.clock().tick()


@pytest.mark.parametrize("unique", [None, Unique()])
def test_jobs_of_a_schedule(application: Jobs[Any], session: Session, unique: Unique | None) -> None:
    jobs = application
    limits = ConcurrencyLimit(1, key="account", ordered=True), RateLimit(5, per=1, name="all")

    @jobs.task(limits=limits, fair_by="account", unique=unique)
    def book(account: int) -> None: ...

    @jobs.task
    def plain() -> None: ...

    book.schedule(NEVER, args={"account": 7})
    plain.schedule(NEVER)
    tick(jobs, session)
    schedules.fire(Changing(session, jobs._models, jobs.tasks), "book")
    rows = session.execute(select(jobs.Job.task, jobs.Job.gates, jobs.Job.ordered_by).order_by(jobs.Job.task))
    of_book = ("book", ["%all", "!book=7", "~book=7"], "!book=7")
    assert [tuple(row) for row in rows] == [of_book, of_book, ("plain", None, None)]


def test_they_start_at_once(application: Jobs[Any], session: Session, database: Engine) -> None:
    """Again and again, so that no look for jobs that lack gates comes by in between."""
    jobs = application
    one = ConcurrencyLimit(1, name="one")

    @jobs.task(limits=one)
    def tell(job_id: int) -> None: ...

    @jobs.task(limits=one, on_failure=tell, max_attempts=1)
    def fails() -> None:
        raise RuntimeError("as asked")

    fails.schedule(NEVER)
    with jobs.worker(clock=False):
        for _ in range(5):
            tick(jobs, session)
            wait_until(lambda: left(database) == 0)
    waited = select(jobs.Job.started_at - jobs.Job.created_at)
    for task in (fails, tell):
        assert sorted(session.scalars(waited.where(jobs.Job.task == task.name)))[2] < timedelta(seconds=0.5)
