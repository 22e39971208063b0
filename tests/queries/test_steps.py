"""The statements about steps and signals, condition by condition."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, func, insert, select, text, update
from sqlalchemy.orm import Session

from sqla_jobs.errors import LeaseLost
from sqla_jobs.models.types import JobState
from sqla_jobs.queries import Claimed
from sqla_jobs.queries.change_jobs import Held, hold
from sqla_jobs.queries.signals import store, wake
from sqla_jobs.queries.steps import NewStep, StepQueries
from tests.queries.test_ends import QUERIES, begun
from tests.shop import jobs

STEPS: StepQueries = QUERIES.steps
Job, Step, Signal = jobs.Job, jobs.Step, jobs.Signal
LOST: dict[str, dict[str, Any]] = {
    "another run": {"current_run_id": 4711},
    "another process": {"process_id": uuid.UUID(int=7)},
    "not running": {"state": "queued"},
}


def lose(connection: Connection, lease: Claimed, how: str) -> None:
    connection.execute(update(Job).where(Job.id == lease.job_id).values(LOST[how]))


def record(connection: Connection, lease: Claimed, name: str = "charge", number: int = 1) -> bool:
    try:
        STEPS.record(connection, NewStep(lease, name, number, '{"n": 1}', 2.0))
    except LeaseLost:
        return False
    return True


def rows(connection: Connection) -> list[Any]:
    return [*connection.execute(select(Step.__table__).order_by(Step.job_id, Step.number))]


@pytest.mark.parametrize("how", LOST)
def test_a_lost_lease_stores_no_step_and_holds_no_row(connection: Connection, how: str) -> None:
    lease, other = begun(connection, 2)
    lose(connection, lease, how)
    assert not record(connection, lease)
    assert not STEPS.hold(connection, lease)
    assert rows(connection) == []
    assert STEPS.hold(connection, other)
    assert record(connection, other)


@pytest.mark.parametrize("call", [record, STEPS.hold])
def test_both_hold_the_row_and_let_foreign_keys_refer_to_it(
    shared: Engine, connection: Connection, emptied: None, call: Any
) -> None:
    (lease,) = begun(connection)
    connection.commit()
    assert call(connection, lease)
    row = select(Job.id).where(Job.id == lease.job_id)
    with shared.connect() as other:
        assert other.scalar(row.with_for_update(read=True, key_share=True, nowait=True)) == lease.job_id
        assert other.scalar(row.with_for_update(key_share=True, skip_locked=True)) is None


def test_a_job_is_put_off_until_the_end_of_its_wait_if_it_is_scheduled(connection: Connection) -> None:
    lease, other = begun(connection, 2)
    for one in (lease, other):
        STEPS.open_wait(connection, one, "rest", 1, "sleep", length=10.0)
        STEPS.open_wait(connection, one, "ever", 2, "signal", length=None)
    before = connection.scalar(select(Job.run_at).where(Job.id == lease.job_id))
    STEPS.put_off(connection, lease.job_id, "rest")
    assert connection.scalar(select(Job.run_at).where(Job.id == lease.job_id)) == before
    connection.execute(update(Job).values(state="scheduled"))
    STEPS.put_off(connection, lease.job_id, "rest")
    ends = select(Job.run_at == Step.until).where(Step.job_id == Job.id, Step.name == "rest").order_by(Job.id)
    assert [*connection.scalars(ends)] == [True, False]
    STEPS.put_off(connection, lease.job_id, "ever")
    assert connection.scalar(text(f"SELECT run_at = 'infinity' FROM sqla_jobs WHERE id = {lease.job_id}"))


def a_waiting_job(session: Session, **values: Any) -> int:
    job = Job(task="mark", args={}, **{"state": "scheduled", **values})
    session.add(job)
    session.flush()
    return int(job.id)


def wait_of(session: Session, job_id: int, **values: Any) -> None:
    row = {"job_id": job_id, "name": "paid", "kind": "signal", "number": 1, "run_id": 1}
    session.execute(insert(Step).values({**row, **values}))


def test_a_signal_wakes_the_job_that_waits_for_it(connection: Connection) -> None:
    with Session(connection) as session:
        job_id, other = a_waiting_job(session), a_waiting_job(session)
        for one in (job_id, other):
            wait_of(session, one)
        before = session.scalar(select(func.max(Job.position)))
        assert hold(session, jobs._models, job_id) == Held("mark", JobState.scheduled)
        assert hold(session, jobs._models, 99) is None
        store(session, jobs._models, job_id, "paid", "null")
        assert session.scalar(text("SELECT payload = 'null' FROM sqla_signals")) is True
        assert wake(session, jobs._models, job_id, "paid")
        states = session.execute(select(Job.state, Job.position > before).order_by(Job.id)).all()
        assert [tuple(row) for row in states] == [("queued", True), ("scheduled", False)]
        assert not wake(session, jobs._models, job_id, "paid")


@pytest.mark.parametrize(
    ("step", "job"),
    [
        ({"name": "sent"}, {}),
        ({"name": "paid2"}, {}),
        ({"kind": "sleep"}, {}),
        ({"finished_at": func.now()}, {}),
        ({}, {"state": "running", "current_run_id": 1, "process_id": uuid.UUID(int=7)}),
        ({}, {"state": "blocked"}),
    ],
)
def test_nothing_else_is_woken(connection: Connection, step: dict[str, Any], job: dict[str, Any]) -> None:
    with Session(connection) as session:
        job_id = a_waiting_job(session, **job)
        wait_of(session, job_id, **step)
        assert not wake(session, jobs._models, job_id, "paid")


def test_the_second_wait_for_a_signal_and_a_job_of_an_ordered_key_are_woken(connection: Connection) -> None:
    with Session(connection) as session:
        job_id = a_waiting_job(session, gates=["key"], ordered_by="key")
        wait_of(session, job_id, name="paid (2)")
        position = session.scalar(select(Job.position).where(Job.id == job_id))
        assert wake(session, jobs._models, job_id, "paid")
        assert session.scalar(select(Job.position).where(Job.id == job_id)) == position


def test_signals_are_taken_in_order_by_name_and_job(connection: Connection) -> None:
    lease, other = begun(connection, 2)
    for job_id, name, payload in (
        (other.job_id, "paid", "0"),
        (lease.job_id, "sent", "1"),
        (lease.job_id, "paid", "2"),
        (lease.job_id, "paid", None),
    ):
        connection.execute(insert(Signal).values(job_id=job_id, name=name, payload=payload))
    assert [STEPS.take_signal(connection, lease.job_id, "paid") for _ in range(3)] == ['"2"', "null", None]
    assert connection.scalar(select(func.count()).select_from(Signal)) == 2
