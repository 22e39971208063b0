"""`drain(…, ahead=…)` fires future ticks of schedules in their order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from tenacity import Retrying, wait_fixed

from sqla_jobs import RunContext
from sqla_jobs.testing import drain
from tests import shop

jobs = shop.jobs


@pytest.fixture
def scheduled(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Forget the schedules that the test declares."""
    declared: dict[str, Any] = {}
    monkeypatch.setattr(jobs.schedules, "_by_name", declared)
    return declared


def ticks(session: Session, name: str) -> list[datetime]:
    """Return the moments for which jobs were enqueued."""
    rows = select(jobs.Job.scheduled_for).join(jobs.Schedule, jobs.Schedule.id == jobs.Job.schedule_id)
    found = session.scalars(rows.where(jobs.Schedule.name == name).order_by(jobs.Job.scheduled_for))
    return [moment for moment in found if moment is not None]


def test_the_ticks_within_that_time_fire_and_their_jobs_run(
    scheduled: dict[str, Any], sqla_jobs_session: Session
) -> None:
    shop.write.schedule("0 * * * *", name="hourly", args={"n": 1})
    shop.write.schedule("* * * * *", name="off", args={"n": 2}, enabled=False)
    assert drain(sqla_jobs_session, jobs).runs == 0
    assert drain(sqla_jobs_session, jobs, ahead=timedelta(hours=5)).runs == 5
    fired = ticks(sqla_jobs_session, "hourly")
    assert {later - earlier for earlier, later in pairwise(fired)} == {timedelta(hours=1)}
    assert all(moment.minute == 0 and moment > datetime.now(UTC) for moment in fired)
    outcomes = sqla_jobs_session.scalars(select(jobs.Tick.outcome)).all()
    assert outcomes == ["enqueued"] * 5
    assert drain(sqla_jobs_session, jobs, ahead=timedelta(hours=5)).runs == 0
    assert drain(sqla_jobs_session, jobs, ahead=timedelta(hours=7)).runs == 2
    assert ticks(sqla_jobs_session, "off") == []


def test_retries_and_delays_alone_can_be_brought_forward(scheduled: dict[str, Any], sqla_jobs_session: Session) -> None:
    shop.write.schedule("0 * * * *", name="hourly", args={"n": 1})
    later = shop.write.options(delay=3600).enqueue(sqla_jobs_session, n=2)
    assert drain(sqla_jobs_session, jobs, ahead=timedelta(hours=5), schedules=False).runs == 1
    assert (later.state, ticks(sqla_jobs_session, "hourly")) == ("succeeded", [])


def test_a_tick_waits_until_all_before_it_has_run(scheduled: dict[str, Any], sqla_jobs_session: Session) -> None:
    @jobs.task(name="settles_late", retry=Retrying(wait=wait_fixed(60)))
    def settles_late(run: RunContext) -> str:
        assert run.scheduled_for is not None
        if run.attempt == 1:
            raise ConnectionError("not yet")
        return run.scheduled_for.isoformat()

    settles_late.schedule("*/10 * * * *", overlap="skip")
    assert drain(sqla_jobs_session, jobs, ahead=timedelta(minutes=30)).runs == 6
    results = sqla_jobs_session.scalars(select(jobs.Run.result).where(jobs.Run.outcome == "succeeded")).all()
    assert results == [moment.isoformat() for moment in ticks(sqla_jobs_session, "settles_late")]
    assert set(sqla_jobs_session.scalars(select(jobs.Tick.outcome))) == {"enqueued"}
