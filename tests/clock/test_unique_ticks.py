"""A tick of a unique task takes a key, or is skipped."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, delete, func, select, update
from sqlalchemy.orm import Session

from sqla_jobs import Jobs, Unique
from sqla_jobs.testing import enqueued
from tests.helpers import new_jobs


@pytest.fixture
def application() -> Jobs[Any]:
    return new_jobs()


@pytest.fixture
def jobs(application: Jobs[Any], database: Engine) -> Jobs[Any]:
    return application


def import_region(region: str) -> None: ...


def declared(jobs: Jobs[Any], session: Session, unique: Unique, **options: Any) -> Any:
    """A unique task with a schedule that was due on each of the last two hours."""
    task = jobs.task(unique=unique)(import_region)
    task.schedule("0 * * * *", args={"region": "eu"}, **options)
    jobs.clock().tick()
    due(jobs, session)
    return task


def due(jobs: Jobs[Any], session: Session) -> None:
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    session.execute(update(jobs.Schedule).values(next_run_at=hour - timedelta(hours=1), last_run_at=None))
    session.commit()


def ticks(jobs: Jobs[Any], session: Session) -> list[tuple[str, int | None]]:
    session.rollback()
    return [(str(tick.outcome), tick.job_id) for tick in session.scalars(select(jobs.Tick).order_by(jobs.Tick.id))]


@pytest.mark.parametrize(
    "unique",
    [
        Unique("region"),
        Unique("region", on_conflict="raise"),
        Unique("region", on_conflict="replace", max_delay=None),
        Unique("region", per=3600),
    ],
    ids=lambda unique: str(unique.on_conflict),
)
def test_it_is_skipped_for_the_job_that_has_its_key(jobs: Jobs[Any], session: Session, unique: Unique) -> None:
    task = declared(jobs, session, unique)
    job = task.enqueue(session, region="eu")
    other = task.enqueue(session, region="us")
    session.commit()
    assert jobs.clock().tick() == 0
    assert ticks(jobs, session)[-1] == ("skipped", job.id)
    assert (job.args, job.scheduled_for, other.scheduled_for) == ({"region": "eu"}, None, None)
    schedule = session.scalars(select(jobs.Schedule)).one()
    assert (schedule.last_run_at, schedule.enabled) == (None, True)
    assert schedule.next_run_at is not None
    assert schedule.next_run_at > datetime.now(UTC)


def test_its_job_has_the_key_and_a_later_enqueue_finds_it(jobs: Jobs[Any], session: Session) -> None:
    task = declared(jobs, session, Unique("region", per=86400 * 36500))
    assert jobs.clock().tick() == 1
    (job,) = enqueued(session, task, region="eu")
    assert job.state == "queued"
    assert job.unique_key == 'unique:["import_region",{"region":"eu"}]'
    assert job.unique_period == datetime(1970, 1, 1, tzinfo=UTC)
    assert task.enqueue(session, region="eu") is job
    assert ticks(jobs, session)[-1] == ("enqueued", job.id)


def test_a_tick_that_had_its_job_already_is_not_told_twice(jobs: Jobs[Any], session: Session) -> None:
    declared(jobs, session, Unique("region"))
    assert jobs.clock().tick() == 1
    before = ticks(jobs, session)
    due(jobs, session)
    assert jobs.clock().tick() == 0
    assert set(ticks(jobs, session)) == set(before)


def test_an_open_transaction_that_has_the_key_holds_up_no_other_schedule(
    jobs: Jobs[Any], session: Session, engine: Engine
) -> None:
    task = declared(jobs, session, Unique("region"))

    @jobs.task
    def other() -> None: ...

    other.schedule("0 * * * *")
    jobs.clock().tick()
    session.execute(delete(jobs.Job))
    due(jobs, session)
    with Session(engine) as holding:
        task.enqueue(holding, region="eu")
        assert jobs.clock().tick() == 1
        assert session.scalars(select(jobs.Job.task)).all() == ["other"]
        holding.rollback()
    assert jobs.clock().tick() == 1, "it has stayed due"
    assert session.scalar(select(func.count()).select_from(jobs.Job)) == 2


def test_a_key_that_cannot_be_made_disables_the_schedule_and_says_why(jobs: Jobs[Any], session: Session) -> None:
    declared(jobs, session, Unique(lambda arguments: arguments["country"]))
    assert jobs.clock().tick() == 0
    schedule = session.scalars(select(jobs.Schedule)).one()
    assert (schedule.enabled, schedule.disabled_reason) == (False, "'country'")


def test_ticks_for_which_the_key_is_none_are_not_unique(jobs: Jobs[Any], session: Session) -> None:
    task = declared(jobs, session, Unique(lambda _: None), catch_up="all")
    task.enqueue(session, region="eu")
    session.commit()
    assert jobs.clock().tick() == 2
    assert session.scalars(select(jobs.Job.unique_key)).all() == [None] * 3
