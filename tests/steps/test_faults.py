"""Steps whose process dies, is stopped, loses its lease, or gets no answer to its COMMIT."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from sqla_jobs.execution.interrupt import Body, TimedOut
from sqla_jobs.execution.step_store import SessionStepStore, StepStore
from sqla_jobs.queries.commit import StepCommit
from sqla_jobs.queries.steps import NewStep, RecordStep
from tests import step_shop
from tests.conftest import StartWorker
from tests.helpers import wait_until, waiting_for_locks
from tests.step_shop import Approval, Order, calls, effects, jobs
from tests.steps.test_signals import state
from tests.steps.test_sleeps import outcomes
from tests.steps.test_steps import drained, steps


@pytest.mark.slow
def test_a_process_killed_in_the_middle_of_steps_does_each_effect_once(
    session: Session, database_url: str, start_worker: StartWorker
) -> None:
    job = step_shop.dies_in_step.enqueue(session)
    session.commit()
    start_worker(database_url, application="tests.step_shop:jobs")
    wait_until(lambda: state(session, job) == "succeeded", timeout=40)
    assert effects(session) == {"first": 1, "second": 1, "third": 1, "end": 1}
    assert outcomes(session, job) == ["lost", "lost", "succeeded"]


@pytest.mark.slow
def test_a_stopped_process_that_goes_on_without_its_lease_stores_no_step(
    session: Session, database_url: str, start_worker: StartWorker
) -> None:
    job = step_shop.stopped_in_step.enqueue(session, seconds=1.0)
    session.commit()
    frozen = start_worker(database_url, application="tests.step_shop:jobs")
    wait_until(lambda: state(session, job) == "running" and effects(session) == {"first": 1})
    os.killpg(frozen.pid, signal.SIGSTOP)
    start_worker(database_url, application="tests.step_shop:jobs")
    wait_until(lambda: state(session, job) == "succeeded", timeout=40)
    os.killpg(frozen.pid, signal.SIGCONT)
    frozen.send_signal(signal.SIGTERM)  # it lets its run go on to the end
    assert frozen.wait(20) == 0
    session.rollback()
    assert effects(session) == {"first": 1, "second": 1}
    assert outcomes(session, job) == ["lost", "succeeded"]


def take_lease_away(engine: Engine, job_id: int) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE sqla_jobs SET current_run_id = current_run_id + 1000 WHERE id = {job_id}"))


@pytest.mark.parametrize("task", [step_shop.loses_lease, step_shop.loses_lease_in_transaction])
def test_a_run_that_has_lost_its_lease_is_left_at_its_next_step(database: Engine, session: Session, task: Any) -> None:
    job = task.enqueue(session)
    session.commit()
    with jobs.worker(clock=False) as worker:
        assert step_shop.begun.wait(20)
        take_lease_away(database, job.id)
        step_shop.gate.set()
        wait_until(lambda: worker.runs)
    assert (steps(session, job), effects(session), calls) == ([], {}, ["inside"])


def without_answer(monkeypatch: pytest.MonkeyPatch, *, commits: bool) -> list[str]:
    """The first commit of a step gets no answer; it is carried out if `commits`. Returns what happened."""
    store_and_commit = StepCommit.store_and_commit
    lost: list[str] = []

    def committing(self: StepCommit, raw: Any, step: NewStep) -> str | None:
        if lost:
            return store_and_commit(self, raw, step)
        lost.append("a commit")
        if commits:
            store_and_commit(self, raw, step)
        raw.close()
        raise psycopg.OperationalError("the connection is lost")

    monkeypatch.setattr(StepCommit, "store_and_commit", committing)
    return lost


@pytest.mark.parametrize("commits", [True, False])
def test_a_transactional_step_whose_commit_gets_no_answer_is_looked_up(
    session: Session, monkeypatch: pytest.MonkeyPatch, commits: bool
) -> None:
    session.add(order := Order())
    job = step_shop.transactional.enqueue(session, order=order)
    session.commit()
    lost = without_answer(monkeypatch, commits=commits)
    assert drained(session) == 3
    assert lost == ["a commit"]
    assert effects(session) == {"paid": 1, "mailed": 1, "end": 1}
    session.refresh(order)
    assert (order.paid, job.result, calls.count("pay")) == (1, [1, 1], 1 if commits else 2)


@pytest.mark.parametrize("after", [True, False])
def test_a_plain_step_whose_storage_fails_once_is_stored_without_another_call(
    session: Session, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Its connection is lost before, or after the server has stored it."""
    record, left = RecordStep.__call__, [1]

    def lost(self: RecordStep, connection: Connection, step: NewStep) -> str | None:
        stored = record(self, connection, step) if after or not left else None
        if left:
            left.pop()
            raise OperationalError("", {}, psycopg.OperationalError("the connection is lost"))
        return stored

    monkeypatch.setattr(RecordStep, "__call__", lost)
    job = step_shop.plain.enqueue(session, amount=Decimal(1))
    assert drained(session) == 3
    assert calls == ["charge", "pair", "nothing"]
    assert [name for name, _, _ in steps(session, job)] == calls


def test_a_sleep_whose_run_loses_its_connection_while_it_ends_is_tried_again(session: Session) -> None:
    session.execute(text("CREATE SEQUENCE ends"))
    session.execute(
        text(
            """CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM pg_terminate_backend(pg_backend_pid()) WHERE nextval('ends') = 1;
            RETURN new; END $$"""
        )
    )
    session.execute(text("CREATE TRIGGER lose BEFORE INSERT ON sqla_runs FOR EACH ROW EXECUTE FUNCTION lose()"))
    job = step_shop.sleeper.enqueue(session, seconds=100)
    assert drained(session) == 1
    assert session.scalars(text("SELECT outcome FROM sqla_runs")).all() == ["snoozed"]
    assert (state(session, job), session.scalar(text("SELECT last_value FROM ends"))) == ("scheduled", 2)


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("sent", [1, 2])
def test_a_signal_whose_receipt_gets_no_answer_is_received_once(
    session: Session, monkeypatch: pytest.MonkeyPatch, sent: int, commits: bool
) -> None:
    held = StepStore._held
    lost: list[str] = []

    @contextmanager
    def holding(self: StepStore) -> Generator[Connection]:
        with held(self) as connection:
            yield connection
            if not lost and not commits:
                lost.append("a commit")
                raise OperationalError("", {}, Exception("the connection is lost"))
        if not lost:
            lost.append("an answer")
            raise OperationalError("", {}, Exception("the connection is lost"))

    monkeypatch.setattr(StepStore, "_held", holding)
    job = (step_shop.approved if sent == 1 else step_shop.approved_twice).enqueue(session)
    for name in ("ada", "bob")[:sent]:
        jobs.signal(session, job, "approved", Approval(name))
    assert drained(session) == 1
    assert lost == ["an answer" if commits else "a commit"]
    assert (state(session, job), job.result) == ("succeeded", "ada" if sent == 1 else ["ada", "bob"])


def test_a_step_that_another_commit_has_stored_is_read_and_its_own_writes_undone(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forgotten COMMIT of the same step comes first: the primary key refuses the second."""
    keep = SessionStepStore.keep

    def late(self: Any, name: str, number: int, result: str | None, *, took: float) -> Any:
        if name == "pay":
            with self._connections.begin() as connection:
                self._steps.record(connection, NewStep(self._job, name, number, "41", took))
        return keep(self, name, number, result, took=took)

    monkeypatch.setattr(SessionStepStore, "keep", late)
    session.add(order := Order())
    job = step_shop.transactional.enqueue(session, order=order)
    drained(session)
    session.refresh(order)
    assert (order.paid, job.result, effects(session)) == (0, [41, 0], {"mailed": 1, "end": 1})


def test_a_timeout_that_comes_during_a_commit_strikes_after_it(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is stored, the run then timed out; the next attempt goes on after it."""
    keep = SessionStepStore.keep
    interrupted: list[str] = []

    def slow(self: Any, name: str, *args: Any, **options: Any) -> Any:
        if name == "slow" and not interrupted:
            body: Body = self._attempt.body
            self._attempt.interrupt(TimedOut)  # the watchdog has looked just before
            assert body._held_back
            interrupted.append(name)
        return keep(self, name, *args, **options)

    monkeypatch.setattr(SessionStepStore, "keep", slow)
    job = step_shop.times_out.enqueue(session)
    assert drained(session) == 2
    assert (effects(session), interrupted, calls) == ({"slow": 1, "end": 1}, ["slow"], ["slow"])
    assert outcomes(session, job) == ["retried", "succeeded"]


def test_coroutines_without_a_session_may_gather_their_steps(session: Session) -> None:
    job = step_shop.gathers.enqueue(session)
    drained(session)
    assert job.result == [1, 2, 3]
    assert sorted(name for name, _, _ in steps(session, job)) == ["1", "2", "3"]


@pytest.mark.slow
def test_heartbeats_go_on_while_the_table_of_steps_is_locked(session: Session, database: Engine) -> None:
    """Such as for an ALTER TABLE. More tasks wait for it than the worker has connections for itself."""
    step_shop.many_steps.enqueue_many(session, [{"number": 1}] * 20)
    session.commit()
    beat = text("SELECT heartbeat_at FROM sqla_processes")
    with database.connect() as locking, database.connect().execution_options(isolation_level="AUTOCOMMIT") as asking:
        locking.execute(text("LOCK TABLE sqla_steps IN ACCESS EXCLUSIVE MODE"))
        with jobs.worker(concurrency=20, heartbeat=0.2, lease=60, clock=False):
            wait_until(lambda: asking.scalar(text("SELECT count(*) FROM sqla_jobs WHERE state = 'running'")) == 20)
            wait_until(lambda: waiting_for_locks(database) >= 4)
            for _ in range(3):
                seen = asking.scalar(beat)
                wait_until(lambda seen=seen: asking.scalar(beat) != seen, timeout=10)  # type: ignore[misc]
            locking.rollback()
            wait_until(lambda: set(session.scalars(text("SELECT state FROM sqla_jobs"))) == {"succeeded"})
