"""Steps: what they do once, in each kind of task, and what they refuse."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqla_jobs import JobMixin
from tests import step_shop
from tests.coroutines.rows import asynchronous
from tests.helpers import wait_until
from tests.step_shop import Approval, Order, calls, effects, jobs


def drained(session: Session) -> int:
    """Commit, and run what is due."""
    session.commit()
    return jobs.worker().drain()


def steps(session: Session, job: JobMixin) -> list[tuple[str, str, Any]]:
    found = session.execute(
        text("SELECT name, kind, result FROM sqla_steps WHERE job_id = :id ORDER BY number"), {"id": job.id}
    )
    return [tuple(row) for row in found]


def error_of(session: Session, job: JobMixin) -> str:
    run = session.execute(
        text("SELECT error_type || ': ' || error FROM sqla_runs WHERE job_id = :id ORDER BY id DESC"), {"id": job.id}
    )
    return str(run.scalars().first())


def test_a_step_is_called_once_and_its_result_is_the_same_in_each_attempt(session: Session) -> None:
    job = step_shop.plain.enqueue(session, amount=Decimal("1.50"))
    assert drained(session) == 3
    assert calls == ["charge", "pair", "nothing"]
    assert job.result == ["Receipt(number=1, total=Decimal('1.50'), lines=(1, 2))", "(1, 'one')"]
    assert steps(session, job) == [
        ("charge", "step", {"number": 1, "total": "1.50", "lines": [1, 2]}),
        ("pair", "step", [1, "one"]),
        ("nothing", "step", None),
    ]


def test_a_step_of_a_coroutine_task_is_awaited_once(session: Session) -> None:
    job = step_shop.awaited.enqueue(session, amount=Decimal("1.50"))
    assert drained(session) == 3
    assert calls == ["charge"]
    assert job.result == ["Receipt(number=1, total=Decimal('1.50'), lines=(1, 2))"]


def test_what_a_transactional_step_writes_is_committed_once_and_the_end_with_the_run(session: Session) -> None:
    session.add(order := Order())
    job = step_shop.transactional.enqueue(session, order=order)
    assert drained(session) == 3
    assert calls == ["pay", "mailed"]
    assert effects(session) == {"paid": 1, "mailed": 1, "end": 1}
    session.refresh(order)
    assert (order.paid, job.result) == (1, [1, 1])


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_steps_are_committed_once_by_each_asynchronous_driver(database: Engine, session: Session, driver: str) -> None:
    jobs.bind(database, async_bind=asynchronous(database, driver))
    session.add(order := Order())
    job = step_shop.transactional_awaited.enqueue(session, order=order)
    waiting = step_shop.approved_in_async_session.enqueue(session)
    jobs.signal(session, waiting, "approved", Approval("ada"))
    refused = step_shop.writes_before_awaited.enqueue(session)
    drained(session)
    assert effects(session) == {"mailed": 1, "end": 1, "before": 1, "ada": 1}
    assert (job.result, waiting.result) == ([1, 1, 1], "ada")
    assert "of its steps" in error_of(session, refused)


@pytest.mark.parametrize("how", ["pending", "changed", "flushed", "locked", "numbered", "follow-up"])
def test_a_step_is_refused_after_the_transaction_has_written(session: Session, how: str) -> None:
    session.add(Order(id=1))
    job = step_shop.writes_before.enqueue(session, how=how)
    drained(session)
    assert "'write' of job" in error_of(session, job)
    assert (effects(session), calls) == ({}, [])


def test_a_step_that_fails_stores_nothing_and_its_writes_are_rolled_back(session: Session) -> None:
    job = step_shop.writes_and_fails_in_step.enqueue(session)
    drained(session)
    assert (effects(session), job.result) == ({"whole": 1}, "whole")
    assert steps(session, job) == [("write", "step", "whole")]


@pytest.mark.parametrize("task", [step_shop.exits_in_step, step_shop.exits_in_awaited_step])
def test_a_step_that_exits_stores_nothing_even_if_the_task_goes_on(session: Session, task: Any) -> None:
    job = task.enqueue(session)
    assert drained(session) == 1
    assert [name for name, _, _ in steps(session, job)] == ["whole"]
    assert effects(session) == {"whole": 1}


@pytest.mark.parametrize(
    "task",
    [step_shop.charges_in_order, step_shop.charges_in_order_in_session, step_shop.charges_in_order_awaited],
)
def test_the_first_attempt_gets_a_result_as_later_ones_do_with_its_keys_in_the_same_order(
    session: Session, task: Any
) -> None:
    task.enqueue(session)
    assert drained(session) == 2
    first, second = (call for call in calls if call.startswith("{"))
    assert first == second


def test_a_name_that_is_there_twice_and_a_step_in_a_step_are_refused(session: Session) -> None:
    doubled = step_shop.twice.enqueue(session)
    nested = step_shop.nested.enqueue(session)
    drained(session)
    assert "'same'" in error_of(session, doubled)
    assert (doubled.state, doubled.attempt) == ("failed", 1)
    assert "'outer'" in error_of(session, nested)
    assert effects(session) == {}


@pytest.mark.parametrize("what", ["set", "tuple", "NUL", "NaN", "large"])
def test_a_result_that_cannot_be_stored_ends_the_job(session: Session, what: str) -> None:
    job = step_shop.unstorable.enqueue(session, what=what)
    assert drained(session) == 1
    assert error_of(session, job).startswith("sqla_jobs.errors.UnstorableResult: ")
    assert (steps(session, job), job.state) == ([], "failed")


def test_a_job_has_at_most_a_thousand_steps(session: Session) -> None:
    good, bad = (step_shop.many_steps.enqueue(session, number=number) for number in (1000, 1001))
    drained(session)
    assert (good.state, len(steps(session, good)), len(steps(session, bad))) == ("succeeded", 1000, 1000)
    assert "step 'step 1000' of job" in error_of(session, bad)


def test_a_step_that_the_task_cancels_is_undone_and_may_be_called_again(session: Session) -> None:
    session.add(order := Order(paid=3))
    job = step_shop.cancels_its_step.enqueue(session, order=order)
    drained(session)
    assert (effects(session), job.result) == ({"whole": 1}, 3)
    assert steps(session, job) == [("write", "step", "whole")]


def test_a_job_that_a_step_enqueues_starts_before_the_task_ends(session: Session) -> None:
    step_shop.enqueues_in_step.enqueue(session)
    session.commit()
    with jobs.worker(clock=False):
        wait_until(lambda: calls)
        step_shop.gate.set()
    assert calls == ["charge", "pair", "nothing"]
