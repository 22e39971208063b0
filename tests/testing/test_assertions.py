"""Assertions about enqueued jobs, and their failures."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from textwrap import dedent
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqla_jobs import ArgumentsError, Unique
from sqla_jobs.testing import (
    assert_enqueued,
    assert_not_enqueued,
    assert_unique,
    drain,
    enqueued,
    make_job,
    startable,
)
from tests.testing.kit_shop import Greet, Order, charge, jobs, send, settle, sync

pytestmark = pytest.mark.filterwarnings("ignore:it goes in the next release")


def test_a_job_is_found_by_some_of_its_arguments_and_returned(kit_session: Session) -> None:
    send.enqueue(kit_session, email="a@b.c", body="one")
    two = send.enqueue(kit_session, email="a@b.c", body="two")
    assert assert_enqueued(kit_session, send, body="two") is two
    assert assert_enqueued(kit_session, send) is two
    assert [job.args["body"] for job in enqueued(kit_session, send, email="a@b.c")] == ["one", "two"]
    assert_not_enqueued(kit_session, send, email="x@y.z")
    with pytest.raises(AssertionError, match=f"job {two.id}"):
        assert_not_enqueued(kit_session, send, body="two")
    with pytest.raises(AssertionError, match=f"job {two.id}"):
        assert_not_enqueued(kit_session, jobs)
    jobs.enqueue(kit_session, Greet("Ada"))
    with pytest.raises(AssertionError, match="1 of 'Greet'"):
        assert_enqueued(kit_session, charge)
    assert_enqueued(kit_session, jobs.tasks["Greet"], name="Ada")


def test_arguments_are_compared_as_the_task_gets_them(kit_session: Session) -> None:
    charge.enqueue(kit_session, amount=Decimal("9.50"), token="t", due=date(2026, 1, 2))
    assert_enqueued(kit_session, charge, amount=Decimal("9.5"), due=date(2026, 1, 2))
    assert_not_enqueued(kit_session, charge, amount=Decimal("9.51"))
    send.enqueue(kit_session, email="a@b.c")
    assert_enqueued(kit_session, send, body="hello", tags=None)
    kit_session.add(order := Order())
    settle.enqueue(kit_session, order=order)
    assert_enqueued(kit_session, settle, order=order)
    kit_session.add(another := Order())
    assert_not_enqueued(kit_session, settle, order=another)


def test_a_job_is_found_by_its_options(kit_session: Session) -> None:
    moment = datetime(2040, 1, 1, tzinfo=UTC)
    plain = send.enqueue(kit_session, email="a@b.c")
    options = send.options(queue="mail", priority=-5, delay=60, unique_key="welcome", columns={"tenant": "acme"})
    one = options.enqueue(kit_session, email="a@b.c")
    two = send.options(run_at=moment).enqueue(kit_session, email="a@b.c")
    assert enqueued(kit_session, options) == [one]
    assert enqueued(kit_session, send.options(delay=timedelta(minutes=1), queue="mail")) == [one]
    assert enqueued(kit_session, send.options(run_at=moment)) == [two]
    assert enqueued(kit_session, send.options(queue="default")) == [plain, two]
    assert_not_enqueued(kit_session, send.options(delay=3600))
    assert_not_enqueued(kit_session, send.options(columns={"tenant": "other"}))
    keyed = send.options(unique=Unique(key="email")).enqueue(kit_session, email="k@b.c")
    assert enqueued(kit_session, send.options(unique=Unique(key="email"))) == [keyed]


def test_a_job_is_found_in_any_state(kit_session: Session) -> None:
    job = send.enqueue(kit_session, email="a@b.c")
    drain(jobs, kit_session)
    assert assert_enqueued(kit_session, send).state == "succeeded"
    job.task, job.args = "old_charge", {"(erased)": True}
    assert enqueued(kit_session, charge) == [job]
    assert_not_enqueued(kit_session, charge, token="t")


def test_a_failure_shows_a_diff_of_the_most_similar_jobs(kit_session: Session) -> None:
    far = send.options(queue="mail").enqueue(kit_session, email="x@y.z", body="bye")
    near = send.enqueue(kit_session, email="a@b.c", body="bye", tags=["new"])
    with pytest.raises(AssertionError) as raised:
        assert_enqueued(kit_session, send.options(queue="default"), email="a@b.c", tags=["old"])
    assert str(raised.value) == dedent(
        f"""\
        expected a job of 'send' with email="a@b.c", tags=["old"], queue="default" (-); the most similar (+) of 2:

          job {near.id}, queued
              "email": "a@b.c"
              "tags": [
          -     "old"
          +     "new"
              ]
              "queue": "default"

          job {far.id}, queued
          -   "email": "a@b.c"
          +   "email": "x@y.z"
          -   "tags": [
          +   "tags": null
          -     "old"
          -   ]
          -   "queue": "default"
          +   "queue": "mail\""""
    )


def test_a_failure_shows_no_sensitive_argument(kit_session: Session) -> None:
    charge.enqueue(kit_session, amount=Decimal(1), token="hunter2")
    with pytest.raises(AssertionError) as raised:
        assert_enqueued(kit_session, charge, amount=Decimal(1), token="swordfish")
    assert "hunter2" not in str(raised.value)
    assert "swordfish" not in str(raised.value)


def test_values_that_no_job_of_the_task_can_have_are_refused(kit_session: Session) -> None:
    with pytest.raises(ArgumentsError, match="'emial'"):
        assert_enqueued(kit_session, send, emial="a@b.c")
    with pytest.raises(ArgumentsError, match="queue"):
        assert_not_enqueued(kit_session, send, queue="mail")
    with pytest.raises(ArgumentsError, match="email"):
        enqueued(kit_session, send, email=7)
    with pytest.raises(ArgumentsError, match="email"):
        enqueued(kit_session, jobs, email="a@b.c")


def test_a_unique_job_is_one_job(kit_session: Session) -> None:
    sync.enqueue(kit_session, account=1)
    one = sync.enqueue(kit_session, account=1, force=True)
    sync.enqueue(kit_session, account=2)
    make_job(kit_session, sync, state="succeeded", args={"account": 1})
    assert assert_unique(kit_session, sync, account=1) is one
    keyed = send.options(unique_key="welcome")
    keyed.enqueue(kit_session, email="a@b.c")
    assert_unique(kit_session, keyed)
    by_hand = sync.options(unique_key="by hand").enqueue(kit_session, account=3)
    with pytest.raises(AssertionError, match=f"job {by_hand.id}"):
        assert_unique(kit_session, sync, account=3)
    with pytest.raises(AssertionError):
        assert_unique(kit_session, sync, account=4)
    with pytest.raises(ArgumentsError, match="send"):
        assert_unique(kit_session, send)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_an_asynchronous_session_runs_them(kit_url: str, driver: str) -> None:
    async def run() -> tuple[bool, str]:
        engine = create_async_engine(kit_url.replace("+psycopg", f"+{driver}"))
        async with engine.connect() as connection, connection.begin() as transaction:
            async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
                job = await session.run_sync(send.enqueue, email="a@b.c")
                found = await session.run_sync(assert_enqueued, send, email="a@b.c")
                await session.run_sync(assert_not_enqueued, charge)
                failed = await session.run_sync(partial(make_job, state="failed", args={"email": "x"}), send)
                state = str(failed.state)
            await transaction.rollback()
        await engine.dispose()
        return found is job, state

    assert asyncio.run(run()) == (True, "failed")


def a_function(email: str) -> None: ...


@pytest.mark.parametrize("what", [Greet, Greet("Ada"), a_function, "send"])
def test_anything_but_a_task_is_refused(kit_session: Session, what: Any) -> None:
    for call in (assert_enqueued, assert_unique, enqueued, assert_not_enqueued, make_job, startable):
        with pytest.raises(ArgumentsError, match="expected"):
            call(kit_session, what)
