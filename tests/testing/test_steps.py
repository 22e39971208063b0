"""Steps in the tests of an application: with rows in the test's session."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqla_jobs import ArgumentsError, Jobs, JobsError
from sqla_jobs.testing import drain, run_job
from tests import step_shop
from tests.step_shop import Approval, Effect, Order, calls, effects, jobs


@pytest.fixture
def application() -> Jobs[Any]:
    calls.clear()
    return jobs


def test_run_job_calls_steps_and_ends_sleeps_at_once(session: Session) -> None:
    assert run_job(session, step_shop.plain, attempt=3)(amount=Decimal(2))[1] == "(1, 'one')"
    assert run_job(session, step_shop.sleeper)(seconds=1000.0) == 1
    session.add(order := Order())
    assert run_job(session, step_shop.transactional, attempt=3)(order=order) == [1, 1]
    assert effects(session) == {"paid": 1, "mailed": 1, "end": 1}


def test_run_job_gives_the_signals_of_the_test_in_order(session: Session) -> None:
    signals = {"approved": [Approval("ada"), Approval("ben")]}
    assert run_job(session, step_shop.approved_twice, signals=signals)() == ["ada", "ben"]
    assert run_job(session, step_shop.approved)(timeout=60) == "timeout"
    with pytest.raises(ArgumentsError, match="a signal"):
        run_job(session, step_shop.approved, signals={"approve": []})()


def test_drain_keeps_the_steps_of_a_run_that_fails(session: Session) -> None:
    session.add(order := Order())
    job = step_shop.transactional.enqueue(session, order=order)
    assert drain(session, jobs, ahead=60).runs == 3
    assert (job.result, order.paid, calls) == ([1, 1], 1, ["pay", "mailed"])
    assert effects(session) == {"paid": 1, "mailed": 1, "end": 1}
    session.rollback()
    assert effects(session) == {}


def test_drain_ahead_ends_sleeps_and_waits(session: Session) -> None:
    sleeping = step_shop.transactional_sleeper.enqueue(session, seconds=100)
    waiting = step_shop.approved.enqueue(session, timeout=200)
    assert drain(session, jobs).runs == 2
    assert (sleeping.state, waiting.state, effects(session)) == ("scheduled", "scheduled", {"before": 1})
    assert drain(session, jobs, ahead=150).runs == 1
    assert (sleeping.state, waiting.state) == ("succeeded", "scheduled")
    assert drain(session, jobs, ahead=250).runs == 1
    assert (waiting.result, effects(session)) == ("timeout", {"before": 1, "after": 1})


def test_drain_refuses_a_step_or_sleep_after_a_write(session: Session) -> None:
    session.add(Effect(kind="of the test"))
    step_shop.sleeps_after_write.enqueue(session)
    with pytest.raises(JobsError):
        drain(session, jobs)
    assert effects(session) == {"of the test": 1}


def test_steps_of_a_task_with_an_async_session_are_awaited_in_the_tests_session(
    database: Engine, database_url: str
) -> None:
    async def test() -> None:
        engine = create_async_engine(database_url)
        async with AsyncSession(engine) as session:
            session.add(order := Order())
            await session.flush()
            assert await run_job(session, step_shop.transactional_awaited, attempt=2)(order=order) == [1, 1, 1]
            job = await session.run_sync(step_shop.approved_in_async_session.enqueue)
            assert (await session.run_sync(drain, jobs)).runs == 1
            await session.run_sync(lambda own: jobs.signal(own, job, "approved", Approval("ada")))
            assert (await session.run_sync(drain, jobs)).runs == 1
            kinds = await session.scalars(text("SELECT kind FROM effects ORDER BY id"))
            assert [*kinds] == ["mailed", "end", "before", "ada"]
        await engine.dispose()

    asyncio.run(test())
