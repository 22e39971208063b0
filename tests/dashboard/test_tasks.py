"""The dashboard's page of tasks."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from sqla_jobs.rules.wording import NOTHING
from sqla_jobs.testing import make_job
from tests import dashboard_shop as shop
from tests.dashboard.visitor import Visitor, words
from tests.dashboard_shop import jobs

_ROW = re.compile(r'<th scope="row"><a href="[^"]*">([^<]+)</a>.*?</tr>', re.DOTALL)


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
    attempt(session, "settle", "lost", number=1)  # and another attempt follows
    attempt(session, "settle", "lost", number=2)
    attempt(session, "settle", "snoozed")
    attempt(session, "slow", "retried", wait=-30, took=2)  # due again later
    attempt(session, "elsewhere", wait=1, took=1, number=2)
    last = session.scalars(select(jobs.Run).order_by(jobs.Run.id.desc()).limit(1)).one()
    first = {"started_at": last.started_at - timedelta(seconds=9), "finished_at": last.started_at}
    session.add(jobs.Run(job_id=last.job_id, attempt=1, outcome="retried", **cast("Any", first)))
    session.commit()
    page = visitor.get("/tasks")
    assert told(page)["add"] == "3 0 0 0 2 s 2.9 s 30 s 39 s"
    assert told(page)["settle"].startswith("3 2 1 0 ")
    assert told(page)["slow"] == f"1 1 1 0 {NOTHING} {NOTHING} 2 s 2 s"
    assert told(page)["elsewhere"].startswith("2 1 1 0 1 s 1 s "), "only the last attempt waited since the job was due"
    assert re.match(r"4 4 2 0 \S+ ms \S+ ms \S+ ms \S+ ms$", told(page)["fail"])
    assert told(page)["login"] == f"0 0 0 0 {NOTHING} {NOTHING} {NOTHING} {NOTHING}"


def test_what_ended_in_the_time_shown_counts_and_what_runs_now(visitor: Visitor, session: Session) -> None:
    for hours in (200, 50, 5, 0.1):
        attempt(session, "add", "failed", ago=3600 * hours, took=4000)
    make_job(session, shop.add, state="running", args={"a": 1})
    session.commit()
    for span, runs in (("hour", 1), ("day", 2), ("week", 3), ("nonsense", 1)):
        assert told(visitor.get(f"/tasks?span={span}"))["add"].startswith(f"{runs} {runs} 0 1 ")
