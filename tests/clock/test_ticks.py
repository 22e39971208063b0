"""What became of each tick is recorded, and shown by `schedule show` and on the schedule's page."""

from __future__ import annotations

import json
import re
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, event, func, insert, select, text, update
from sqlalchemy.orm import Session

from sqla_jobs.cli.main import main
from sqla_jobs.models.types import JobState
from sqla_jobs.testing import make_job
from tests import shop
from tests.helpers import refuse, wait_until

jobs = shop.jobs


@pytest.fixture
def hourly(session: Session) -> Any:
    """A schedule that fires each hour, and was seen by a clock."""
    session.add(jobs.Schedule(name="hourly", task="mark", cron="0 * * * *", args={"n": 1}))
    session.commit()
    jobs.clock().tick()
    return session.scalars(select(jobs.Schedule)).one()


def show(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["schedule", "show", "hourly", *arguments, "--app", "tests.shop:jobs"])
    assert result.exit_code == 0, result.output
    return result.output


def hours_ago(hours: int) -> datetime:
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=hours)


def came_last(session: Session, **when: Any) -> None:
    """As if the clock had stopped then."""
    session.execute(update(jobs.Schedule).values(next_run_at=hours_ago(**when)))
    session.commit()


def shown(*arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(show("--json", *arguments))["ticks"]
    return found


def fire(expected: int) -> None:
    assert jobs.clock().tick() == expected


def test_a_tick_names_its_job_how_late_it_was_enqueued_and_what_became_of_it(session: Session, hourly: Any) -> None:
    came_last(session, hours=0)
    fire(1)
    (tick,) = shown()
    job = session.scalars(select(jobs.Job)).one()
    assert (tick["outcome"], tick["job_id"], tick["job_state"]) == ("enqueued", job.id, "queued")
    assert datetime.fromisoformat(tick["scheduled_for"]) == job.scheduled_for == hours_ago(0)
    assert 0 < tick["late"] < 3601
    session.execute(update(jobs.Job).values(state=JobState.failed, finished_at=func.now()))
    session.commit()
    assert shown()[0]["job_state"] == "failed"
    assert re.search(rf"enqueued +{job.id} +failed", show())
    session.delete(job)
    session.commit()
    assert shown()[0]["job_state"] is None
    assert re.search(rf"enqueued +{job.id} +deleted", show())


@pytest.mark.parametrize(("catch_up", "enqueued", "missed"), [("latest", 1, [3]), ("all", 4, []), ("skip", 0, [4])])
def test_ticks_at_which_no_clock_ran_are_told_as_missed(
    session: Session, hourly: Any, catch_up: str, enqueued: int, missed: list[int]
) -> None:
    last = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=20)
    first = last - timedelta(hours=3)
    hourly.cron, hourly.catch_up = f"{last.minute} * * * *", catch_up
    hourly.planned_rule, hourly.next_run_at = f"{hourly.cron} UTC", first
    session.commit()
    fire(enqueued)
    ticks = shown()
    assert [tick["outcome"] for tick in ticks].count("enqueued") == enqueued
    told = [tick for tick in ticks if tick["outcome"] == "missed"]
    assert [tick["count"] for tick in told] == missed
    for tick in told:
        until = first + timedelta(hours=tick["count"] - 1)
        assert [datetime.fromisoformat(tick[name]) for name in ("scheduled_for", "until")] == [first, until]


def test_a_tick_is_skipped_for_the_job_that_had_not_ended(session: Session, hourly: Any) -> None:
    hourly.overlap = "skip"
    job = make_job(session, jobs.tasks["mark"], schedule_id=hourly.id)
    session.commit()
    came_last(session, hours=0)
    fire(0)
    (tick,) = shown()
    assert (tick["outcome"], tick["job_id"], tick["job_state"]) == ("skipped", job.id, "queued")
    assert re.search(rf"skipped +{job.id} +queued", show())


def test_of_an_outage_only_the_newest_tick_is_skipped_and_the_others_are_missed(session: Session, hourly: Any) -> None:
    hourly.overlap, hourly.catch_up = "skip", "all"
    make_job(session, jobs.tasks["mark"], schedule_id=hourly.id)
    session.commit()
    came_last(session, hours=3)
    fire(0)
    assert [(tick["outcome"], tick["count"]) for tick in shown()] == [("skipped", 1), ("missed", 3)]


def test_a_tick_and_its_trace_are_one_transaction(session: Session, hourly: Any) -> None:
    refuse(session, "NEW.outcome = 'enqueued'", table="sqla_ticks", when="BEFORE INSERT")
    came_last(session, hours=0)
    fire(0)
    assert session.scalar(select(func.count()).select_from(jobs.Job)) == 0
    session.execute(text("DROP TRIGGER refuse ON sqla_ticks"))
    session.commit()
    fire(1)
    fire(0)
    assert [tick["outcome"] for tick in shown()] == ["enqueued"]


def test_a_tick_that_the_database_refuses_is_told_while_it_is_tried_again(session: Session, hourly: Any) -> None:
    refuse(session, "NEW.schedule_id IS NOT NULL", when="BEFORE INSERT")
    came_last(session, hours=0)
    with jobs.clock():
        wait_until(lambda: json.loads(show("--json"))["refused"])
        assert "not this one" in show()


@pytest.mark.slow
def test_while_a_schedule_is_set_aside_the_clock_looks_no_more_often_and_fires_the_others(
    session: Session, hourly: Any
) -> None:
    refuse(session, "NEW.args = '{\"n\": 1}'", when="BEFORE INSERT")
    came_last(session, hours=0)
    sent: list[str] = []
    with jobs.clock():
        wait_until(lambda: any(session.scalars(select(jobs.Process.set_aside))))

        @event.listens_for(Engine, "before_cursor_execute")
        def count(*_: Any) -> None:
            sent.append(threading.current_thread().name)

        try:
            until = time.monotonic() + 6
            wait_until(lambda: time.monotonic() > until)
        finally:
            event.remove(Engine, "before_cursor_execute", count)
        assert 2 <= sent.count("sqla_jobs-clock") <= 10, "it looks each 2 s, and sends heartbeats each 5 s"
        session.add(jobs.Schedule(name="each second", task="mark", cron="* * * * * *", args={"n": 2}))
        session.commit()
        wait_until(lambda: (session.scalar(select(func.count()).select_from(jobs.Job)) or 0) >= 2, timeout=10)


def test_they_are_kept_for_a_month_or_as_long_as_is_said(session: Session, database: Engine) -> None:
    for days in (31, 29, 1):
        at = func.now() - timedelta(days=days)
        session.execute(insert(jobs.Tick).values(schedule_id=days, outcome="missed", at=at))
    session.commit()

    def left() -> list[int]:
        session.rollback()
        return list(session.scalars(select(jobs.Tick.schedule_id)))

    with jobs.worker(bind=database, clock=False):
        wait_until(lambda: left() == [29, 1])
    with jobs.worker(bind=database, retention={"ticks": timedelta(days=2)}, clock=False):
        wait_until(lambda: left() == [1])
