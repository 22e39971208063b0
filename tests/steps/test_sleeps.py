"""Sleeps: the job leaves its worker, comes back when the database says so, and uses no attempt."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqla_jobs import JobMixin
from tests import step_shop
from tests.helpers import wait_until
from tests.step_shop import effects, jobs
from tests.steps.test_steps import drained, error_of


def job_row(session: Session, job: JobMixin) -> Any:
    session.rollback()
    return session.execute(
        text(
            """SELECT state, attempt, process_id,
            10 * ceil(extract(epoch FROM run_at - clock_timestamp()) / 10) AS due_in,
            (SELECT until FROM sqla_steps WHERE job_id = job.id AND finished_at IS NULL) = run_at AS is_due_then
            FROM sqla_jobs job WHERE id = :id"""
        ),
        {"id": job.id},
    ).one()


def let_time_pass(session: Session, job: JobMixin, seconds: int) -> None:
    """Move the job's times, which only the database knows, into the past."""
    past = f"interval '{seconds} seconds'"
    session.execute(text(f"UPDATE sqla_steps SET until = until - {past} WHERE job_id = {job.id}"))
    session.execute(text(f"UPDATE sqla_jobs SET run_at = run_at - {past} WHERE id = {job.id}"))
    session.commit()


def outcomes(session: Session, job: JobMixin) -> list[str]:
    found = session.execute(text(f"SELECT outcome FROM sqla_runs WHERE job_id = {job.id} ORDER BY id"))
    return [*found.scalars()]


@pytest.mark.parametrize("task", [step_shop.sleeper, step_shop.awaited_sleeper])
def test_a_sleeping_job_leaves_the_worker_and_goes_on_from_there(session: Session, task: Any) -> None:
    job = task.enqueue(session, seconds=100)
    assert drained(session) == 1
    row = job_row(session, job)
    assert (row.state, row.attempt, row.due_in, row.process_id, row.is_due_then) == ("scheduled", 0, 100, None, True)
    let_time_pass(session, job, 100)
    assert drained(session) == 1
    assert (job.result, outcomes(session, job)) == (1, ["snoozed", "succeeded"])


def test_a_sleep_in_a_transaction_keeps_its_steps_and_refuses_other_writes(session: Session) -> None:
    job = step_shop.transactional_sleeper.enqueue(session, seconds=100)
    refused = step_shop.sleeps_after_write.enqueue(session)
    drained(session)
    assert effects(session) == {"before": 1}
    assert "'rest' of job" in error_of(session, refused)
    let_time_pass(session, job, 100)
    drained(session)
    assert effects(session) == {"before": 1, "after": 1}


def test_a_running_worker_wakes_a_job_when_its_sleep_is_over(database: Engine, session: Session) -> None:
    job = step_shop.sleeper.enqueue(session, seconds=0.3)
    session.commit()
    with jobs.worker(clock=False):
        wait_until(lambda: job_row(session, job).state == "succeeded")
    assert outcomes(session, job) == ["snoozed", "succeeded"]


def test_a_job_that_sleeps_leaves_its_place_behind_a_limit_to_others(session: Session) -> None:
    first, second = (step_shop.limited_sleeper.enqueue(session, seconds=seconds) for seconds in (100, 0))
    drained(session)
    assert (job_row(session, first).state, job_row(session, second).state) == ("scheduled", "succeeded")
