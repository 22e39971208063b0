"""Signals: part of the sender's transaction, kept until received, and never missed."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqla_jobs import ArgumentsError, JobMixin, UnknownJob
from sqla_jobs.queries.steps import HoldLease, TakeSignal
from tests import step_shop
from tests.helpers import wait_until, waiting_for_locks
from tests.step_shop import Approval, calls, effects, jobs
from tests.steps.test_sleeps import job_row, let_time_pass, outcomes
from tests.steps.test_steps import drained, error_of, steps

WAITING_TASKS = [step_shop.approved, step_shop.approved_awaited]


def state(session: Session, job: JobMixin) -> str:
    session.rollback()
    return str(session.scalar(text(f"SELECT state FROM sqla_jobs WHERE id = {job.id}")))


@pytest.mark.parametrize("task", WAITING_TASKS)
def test_a_job_waits_without_a_worker_and_is_woken_by_the_senders_commit(session: Session, task: Any) -> None:
    job = task.enqueue(session)
    assert drained(session) == 1
    found = session.execute(text("SELECT state, run_at = 'infinity', attempt FROM sqla_jobs")).one()
    assert tuple(found) == ("scheduled", True, 0)
    assert jobs.signal(session, job, "approved", Approval("ada"))
    assert job.state == "queued"
    session.rollback()
    assert state(session, job) == "scheduled"
    assert jobs.signal(session, job.id, "approved", Approval("ada"))
    assert drained(session) == 1
    assert (job.result, outcomes(session, job)) == ("ada", ["snoozed", "succeeded"])
    assert steps(session, job) == [("approved", "signal", {"by": "ada"})]
    assert session.scalar(text("SELECT count(*) FROM sqla_signals")) == 0


def test_signals_that_come_early_are_kept_and_received_one_by_one_in_order(session: Session) -> None:
    job = step_shop.approved_twice.enqueue(session)
    jobs.signal(session, job, "approved", Approval("ada"))
    jobs.signal(session, job, "other", 1)
    assert drained(session) == 1
    assert state(session, job) == "scheduled"
    jobs.signal(session, job, "approved", Approval("ben"))
    jobs.signal(session, job, "approved", Approval("cyd"))
    assert drained(session) == 1
    assert job.result == ["ada", "ben"]
    assert [step[0] for step in steps(session, job)] == ["approved", "approved (2)"]


def test_a_timeout_is_decided_once_and_told_to_each_attempt(session: Session) -> None:
    job = step_shop.approved.enqueue(session, timeout=100, fails=1)
    drained(session)
    row = job_row(session, job)
    assert (row.state, row.due_in, row.is_due_then) == ("scheduled", 100, True)
    let_time_pass(session, job, 100)
    jobs.signal(session, job, "other")
    assert drained(session) == 2
    assert (job.result, outcomes(session, job)) == ("timeout", ["snoozed", "retried", "succeeded"])
    assert steps(session, job) == [("approved", "timeout", None)]


def test_a_signal_after_the_timeout_was_decided_changes_nothing(session: Session) -> None:
    job = step_shop.approved.enqueue(session, timeout=0, fails=1)
    session.commit()
    with jobs.worker(clock=False) as worker:
        wait_until(lambda: worker.runs)
    session.rollback()
    if jobs.signal(session, job, "approved", Approval("late")):
        drained(session)
    session.refresh(job)
    assert job.result == "timeout"


def test_a_job_that_has_ended_receives_nothing_and_an_unknown_one_is_an_error(session: Session) -> None:
    job = step_shop.approved.enqueue(session, timeout=0)
    drained(session)
    assert not jobs.signal(session, job, "approved", Approval("ada"))
    with pytest.raises(UnknownJob, match="99"):
        jobs.signal(session, 99, "approved")
    for payload in (float("nan"), object(), "a\0b", "x" * 1_100_000):
        with pytest.raises(ArgumentsError, match="'approved'"):
            jobs.signal(session, job, "approved", payload)
    assert session.scalar(text("SELECT count(*) FROM sqla_signals")) == 0


@pytest.mark.parametrize("task", WAITING_TASKS)
def test_a_payload_that_does_not_fit_fails_the_attempt_and_a_further_signal_is_received(
    session: Session, task: Any
) -> None:
    job = task.options(max_attempts=1).enqueue(session)
    drained(session)
    jobs.signal(session, job, "approved", {"from": "ada"})
    drained(session)
    assert (state(session, job), steps(session, job)) == ("failed", [("approved", "signal", None)])
    assert "ArgumentsError: the signal 'approved'" in error_of(session, job)
    jobs.retry(session, job)
    drained(session)
    assert state(session, job) == "scheduled"
    jobs.signal(session, job, "approved", Approval("ada"))
    drained(session)
    assert (job.result, outcomes(session, job)) == ("ada", ["snoozed", "failed", "snoozed", "succeeded"])
    assert session.scalar(text("SELECT count(*) FROM sqla_signals")) == 0


def test_a_task_with_an_async_session_waits_between_its_steps(session: Session) -> None:
    job = step_shop.approved_in_async_session.enqueue(session)
    drained(session)
    assert effects(session) == {"before": 1}
    jobs.signal(session, job, "approved", Approval("ada"))
    drained(session)
    assert effects(session) == {"before": 1, "ada": 1}


def test_a_sender_that_comes_while_the_run_looks_waits_for_it_and_wakes_the_job(
    database: Engine, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run has locked its row and seen no signal; the sender waits for the lock, and sees the wait."""
    looked, go_on = threading.Event(), threading.Event()
    take = TakeSignal.__call__

    def slowly(self: TakeSignal, *args: Any) -> Any:
        found = take(self, *args)
        looked.set()
        assert go_on.wait(20)
        return found

    monkeypatch.setattr(TakeSignal, "__call__", slowly)
    job = step_shop.approved.enqueue(session)
    session.commit()
    job_id = job.id

    def send() -> None:
        with Session(database) as own:
            jobs.signal(own, job_id, "approved", Approval("ada"))
            own.commit()

    with jobs.worker(clock=False):
        assert looked.wait(20)
        sender = threading.Thread(target=send)
        sender.start()
        wait_until(lambda: waiting_for_locks(database))
        go_on.set()
        sender.join(20)
        wait_until(lambda: state(session, job) == "succeeded")
    assert outcomes(session, job) == ["snoozed", "succeeded"]


def test_a_run_that_comes_while_the_sender_has_not_committed_waits_for_it(
    database: Engine, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender has locked the row of a running job; the run tries again until it is free, and sees the signal."""
    tries, look = list[int](), HoldLease.__call__

    def looking(self: HoldLease, *args: Any) -> bool:
        tries.append(1)
        return look(self, *args)

    monkeypatch.setattr(HoldLease, "__call__", looking)
    job = step_shop.waits_at_the_gate.enqueue(session)
    session.commit()
    with jobs.worker(clock=False):
        assert step_shop.begun.wait(20)
        jobs.signal(session, job, "approved", Approval("ada"))
        step_shop.gate.set()
        wait_until(lambda: len(tries) > 1)
        assert not waiting_for_locks(database)
        session.commit()
        wait_until(lambda: state(session, job) == "succeeded")
    assert outcomes(session, job) == ["succeeded"]
    assert calls == []
