"""The dashboard's page of tasks."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import Jobs
from sqla_jobs.dashboard import allow_everyone, create_blueprint
from sqla_jobs.rules.wording import NOTHING
from tests import dashboard_shop as shop
from tests.dashboard.visitor import Visitor, words
from tests.dashboard_shop import create_app, jobs
from tests.helpers import flood

_ROW = re.compile(r'<th scope="row"><a href="[^"]*">([^<]+)</a>.*?</tr>', re.DOTALL)


@pytest.fixture
def visitor(database: Engine) -> Visitor:
    return Visitor(create_app())


def told(page: str) -> dict[str, str]:
    """What is said of each task, in the order of the page."""
    return {found[1]: words(found[0]).removeprefix(found[1]).strip() for found in _ROW.finditer(page)}


def attempt(
    session: Session,
    task: str,
    outcome: str = "succeeded",
    *,
    ago: float = 60,
    wait: float = 0,
    took: float = 0,
    number: int = 1,
    max_attempts: int = 2,
) -> None:
    """An attempt that ended so many seconds ago, and its job."""
    end = datetime.now(UTC) - timedelta(seconds=ago)
    start = end - timedelta(seconds=took)
    has_ended = outcome in ("succeeded", "failed") or (outcome == "lost" and number == max_attempts)
    times: dict[str, Any] = {"started_at": start, "finished_at": end if has_ended else None}
    state = ("failed" if outcome == "lost" else outcome) if has_ended else "scheduled"
    due = start - timedelta(seconds=wait)
    job = jobs.Job(task=task, args={}, state=state, run_at=due, attempt=number, max_attempts=max_attempts, **times)
    session.add(job)
    session.flush()
    session.add(jobs.Run(job_id=job.id, attempt=number, outcome=outcome, started_at=start, finished_at=end))


def test_each_task_says_how_often_it_ran_how_that_went_and_how_long_it_took(visitor: Visitor, session: Session) -> None:
    for wait, took in ((1, 20), (2, 30), (3, 40)):
        attempt(session, "add", wait=wait, took=took)
    session.commit()
    shop.fail.enqueue_many(session, [{"message": "no"}, {"message": "no"}])
    session.commit()
    jobs.worker().drain()
    page = visitor.get("/tasks")
    assert told(page)["add"] == "3 0 0 0 2 s 2.9 s 30 s 39 s"
    assert re.match(r"4 4 2 0 \S+ ms \S+ ms \S+ ms \S+ ms$", told(page)["fail"])
    assert told(page)["login"] == f"0 0 0 0 {NOTHING} {NOTHING} {NOTHING} {NOTHING}"


def test_an_attempt_that_was_lost_is_a_failure_and_a_retry_where_another_follows(
    visitor: Visitor, session: Session
) -> None:
    attempt(session, "add", "lost", number=1)
    attempt(session, "add", "lost", number=2)
    attempt(session, "add", "snoozed")
    session.commit()
    assert told(visitor.get("/tasks"))["add"].startswith("3 2 1 0 ")


def test_the_wait_is_that_before_the_attempt_with_which_a_job_ended(visitor: Visitor, session: Session) -> None:
    attempt(session, "add", "retried", wait=-30, took=2)  # due again later
    session.commit()
    assert told(visitor.get("/tasks"))["add"] == f"1 1 1 0 {NOTHING} {NOTHING} 2 s 2 s"


@pytest.mark.parametrize(("span", "runs"), [("hour", 1), ("day", 2), ("week", 3), ("nonsense", 1)])
def test_what_ended_in_the_time_shown_counts(visitor: Visitor, session: Session, span: str, runs: int) -> None:
    for hours in (200, 50, 5, 0.1):
        attempt(session, "add", "failed", ago=3600 * hours, took=4000)
    session.commit()
    assert told(visitor.get(f"/tasks?span={span}"))["add"].startswith(f"{runs} {runs} 0 ")


def test_what_runs_is_told_beside_what_has_ended(visitor: Visitor, session: Session) -> None:
    process = jobs.Process(queues={"default": 2})
    session.add(process)
    session.flush()
    for lease in (1, 2):
        beside: dict[str, Any] = {"process_id": process.id, "current_run_id": lease, "started_at": datetime.now(UTC)}
        session.add(jobs.Job(task="a task of others", args={}, state="running", **beside))
    session.commit()
    assert told(visitor.get("/tasks"))["a task of others"].startswith("0 0 0 2 ")


def numbers(session: Session) -> None:
    """Tasks of which each has more of one thing."""
    attempt(session, "add", wait=1, took=1)
    attempt(session, "add", wait=1, took=1)
    attempt(session, "add", wait=1, took=1)
    attempt(session, "fail", "failed", wait=9, took=2)
    attempt(session, "fail", "failed", wait=9, took=2)
    attempt(session, "settle", "retried", took=3)
    session.commit()


@pytest.mark.parametrize(
    ("query", "order"),
    [
        ("", ["add", "fail", "settle"]),
        ("sort=runs&order=asc", ["settle", "fail", "add"]),
        ("sort=task", ["add", "fail", "settle"]),
        ("sort=task&order=desc", ["settle", "fail", "add"]),
        ("sort=failures", ["fail", "settle", "add"]),
        ("sort=retries", ["settle", "add", "fail"]),
        ("sort=wait50", ["fail", "add", "settle"]),
        ("sort=wait95&order=asc", ["add", "fail", "settle"]),
        ("sort=run50", ["settle", "fail", "add"]),
        ("sort=run95&order=asc", ["add", "fail", "settle"]),
        ("sort=nonsense&order=nonsense", ["add", "fail", "settle"]),
    ],
)
def test_the_page_is_sorted_by_any_column(visitor: Visitor, session: Session, query: str, order: list[str]) -> None:
    numbers(session)
    found = [task for task in told(visitor.get(f"/tasks?{query}")) if task in order]
    assert found == order


def test_a_heading_sorts_and_sorts_the_other_way_round(visitor: Visitor) -> None:
    page = visitor.get("/tasks?span=day&sort=run95")
    here = '<th scope="col" class="n" aria-sort="descending"><a href="/ops/tasks?span=day&amp;sort=run95&amp;order=asc"'
    assert here in page
    assert '<th scope="col" class="n"><a href="/ops/tasks?span=day&amp;sort=runs&amp;order=desc">Runs' in page
    assert '<a href="/ops/tasks?span=week&amp;sort=run95&amp;order=desc">Last week</a>' in page


def test_a_task_leads_to_its_jobs_and_to_those_that_failed(visitor: Visitor, session: Session) -> None:
    attempt(session, "fail", "failed")
    attempt(session, "add")
    session.commit()
    page = visitor.get("/tasks")
    assert '<a href="/ops/jobs?task=fail">fail</a>' in page
    assert 'href="/ops/jobs?task=fail&amp;state=failed" title="Jobs that have failed for good">1</a>' in page
    assert "fail #1" in words(visitor.get("/jobs?task=fail&state=failed"))


def test_of_many_runs_the_newest_tell_and_the_page_says_since_when(visitor: Visitor, session: Session) -> None:
    attempt(session, "add", "failed", ago=120)
    flood(session, "failed", rare=2_000, many=10_000)
    session.execute(text("UPDATE sqla_runs SET finished_at = now() - (13000 - id) * interval '1 ms'"))
    session.execute(
        text("UPDATE sqla_jobs SET finished_at = r.finished_at FROM sqla_runs r WHERE job_id = sqla_jobs.id")
    )
    session.commit()
    oldest = session.scalars(select(jobs.Run.finished_at).where(jobs.Run.id == 2_002)).one()
    for page in (visitor.get("/tasks"), visitor.get("/")):
        assert f"Only the newest 10,000 runs are read: those since {oldest:%Y-%m-%d %H:%M:%S}" in words(page)
    found = told(visitor.get("/tasks"))
    assert found["mark"].startswith("10,000 10,000 0 0 ")
    assert found["add"].startswith("0 0 0 0 ")


def test_without_tasks_the_page_says_how_to_get_one(database: Engine) -> None:
    class Base(DeclarativeBase):
        pass

    empty = Jobs(Base)
    empty.bind(database)
    app = Flask("empty")
    app.register_blueprint(create_blueprint(empty, authorize=allow_everyone), url_prefix="/ops")
    assert "There are no tasks yet. Declare one in your application, @jobs.task" in words(Visitor(app).get("/tasks"))


def test_the_link_of_failures_leads_to_what_has_failed_for_good_and_is_not_there_without(
    visitor: Visitor, session: Session
) -> None:
    attempt(session, "fail", "failed")
    attempt(session, "fail", "retried")
    attempt(session, "settle", "retried")
    session.commit()
    page = visitor.get("/tasks")
    assert 'href="/ops/jobs?task=fail&amp;state=failed"' in page
    assert 'href="/ops/jobs?task=settle&amp;state=failed"' not in page
    assert "links to them, and not to those that are retried" in words(page)
