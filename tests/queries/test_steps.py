"""The statements about steps and signals, condition by condition."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, func, insert, select, update
from sqlalchemy.orm import Session

from sqla_jobs.errors import LeaseLost
from sqla_jobs.queries import Claimed
from sqla_jobs.queries.signals import wake
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


def a_waiting_job(session: Session, **values: Any) -> int:
    job = Job(task="mark", args={}, **{"state": "scheduled", **values})
    session.add(job)
    session.flush()
    return int(job.id)


def wait_of(session: Session, job_id: int, **values: Any) -> None:
    row = {"job_id": job_id, "name": "paid", "kind": "signal", "number": 1, "run_id": 1}
    session.execute(insert(Step).values({**row, **values}))


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
