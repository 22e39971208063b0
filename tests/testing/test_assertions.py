"""Assertions about enqueued jobs, and their failures."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from textwrap import dedent
from typing import Any, cast

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sqla_jobs import ArgumentsError, Unique
from sqla_jobs.testing import (
    assert_enqueued,
    assert_not_enqueued,
    assert_starts,
    assert_unique,
    drain,
    enqueued,
    make_job,
    startable,
)
from tests.testing.kit_shop import Greet, Order, charge, jobs, send, settle, sync


def message(raised: pytest.ExceptionInfo[AssertionError]) -> str:
    return str(raised.value)


def test_a_job_is_found_by_some_of_its_arguments_and_returned(kit_session: Session) -> None:
    send.enqueue(kit_session, email="a@b.c", body="one")
    two = send.enqueue(kit_session, email="a@b.c", body="two")
    assert assert_enqueued(kit_session, send, body="two") is two
    assert assert_enqueued(kit_session, send) is two
    assert [job.args["body"] for job in enqueued(kit_session, send, email="a@b.c")] == ["one", "two"]
    assert_not_enqueued(kit_session, send, email="x@y.z")


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


def test_a_task_that_is_a_class_is_known_by_its_name(kit_session: Session) -> None:
    jobs.enqueue(kit_session, Greet("Ada"))
    assert_enqueued(kit_session, jobs.tasks["Greet"], name="Ada")


def test_a_failure_shows_a_diff_of_the_most_similar_jobs(kit_session: Session) -> None:
    far = send.options(queue="mail").enqueue(kit_session, email="x@y.z", body="bye")
    near = send.enqueue(kit_session, email="a@b.c", body="bye", tags=["new"])
    with pytest.raises(AssertionError) as raised:
        assert_enqueued(kit_session, send.options(queue="default"), email="a@b.c", tags=["old"])
    assert message(raised) == dedent(
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


def test_a_failure_shows_options_too(kit_session: Session) -> None:
    send.options(delay=60, columns={"tenant": "acme"}).enqueue(kit_session, email="a@b.c")
    with pytest.raises(AssertionError) as raised:
        assert_enqueued(kit_session, send.options(delay=3600, columns={"tenant": "other"}))
    assert message(raised).endswith(
        ''', scheduled
  -   "delay": 3600.0
  +   "delay": 60.0
  -   "tenant": "other"
  +   "tenant": "acme"'''
    )


def test_a_failure_shows_three_jobs_at_most(kit_session: Session) -> None:
    send.enqueue_many(kit_session, ({"email": str(n)} for n in range(5)))
    with pytest.raises(AssertionError, match=r"most similar \(\+\) of 5(?s:.*)\n\n  and 2 more$"):
        assert_enqueued(kit_session, send, email="a@b.c")


def test_a_failure_lists_the_other_enqueued_tasks(kit_session: Session) -> None:
    with pytest.raises(AssertionError) as raised:
        assert_enqueued(kit_session, send, email="a@b.c")
    assert message(raised) == (
        "expected a job of 'send' with email=\"a@b.c\"; there is none of this task, and no other one; "
        "was it enqueued in another session, or rolled back?"
    )
    sync.enqueue(kit_session, account=1)
    sync.enqueue(kit_session, account=2)
    jobs.enqueue(kit_session, Greet("Ada"))
    with pytest.raises(AssertionError, match=r"none of this task, but 1 of 'Greet', 2 of 'sync'$"):
        assert_enqueued(kit_session, send)


def test_a_failure_lists_the_unexpected_jobs(kit_session: Session) -> None:
    assert_not_enqueued(kit_session, jobs)
    one = send.enqueue(kit_session, email="a@b.c")
    two = charge.enqueue(kit_session, amount=Decimal(1), token="hunter2")
    with pytest.raises(AssertionError) as raised:
        assert_not_enqueued(kit_session, send, email="a@b.c")
    assert message(raised) == (
        f'expected no job of \'send\' with email="a@b.c"; there is 1 job:\n  job {one.id}, queued: send(email="a@b.c")'
    )
    with pytest.raises(AssertionError) as raised:
        assert_not_enqueued(kit_session, jobs)
    assert message(raised).startswith("expected no job; there are 2 jobs:\n")
    assert f'job {two.id}, queued: charge(token="(hidden)", amount="1")' in message(raised)
    assert len(enqueued(kit_session, jobs)) == 2


def test_a_failure_shows_no_sensitive_argument(kit_session: Session) -> None:
    charge.enqueue(kit_session, amount=Decimal(1), token="hunter2")
    with pytest.raises(AssertionError) as raised:
        assert_enqueued(kit_session, charge, amount=Decimal(1), token="swordfish")
    assert "hunter2" not in message(raised)
    assert "swordfish" not in message(raised)
    assert '+   "token": "(hidden), a different value"' in message(raised)


def test_values_that_no_job_of_the_task_can_have_are_refused(kit_session: Session) -> None:
    with pytest.raises(ArgumentsError, match="unexpected keyword argument 'emial'; it takes: email, body, tags"):
        assert_enqueued(kit_session, send, emial="a@b.c")
    with pytest.raises(ArgumentsError, match=r"it is an option: send.options\(queue=…\)"):
        assert_not_enqueued(kit_session, send, queue="mail")
    with pytest.raises(ArgumentsError, match="email does not fit"):
        enqueued(kit_session, send, email=7)
    with pytest.raises(ArgumentsError, match="email is an argument of a task"):
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


def test_a_failure_shows_the_keys_of_jobs_that_are_not_unique(kit_session: Session) -> None:
    one = sync.options(unique_key="by hand").enqueue(kit_session, account=1)
    with pytest.raises(AssertionError) as raised:
        assert_unique(kit_session, sync, account=1)
    assert message(raised).startswith(
        "expected one live job of 'sync' with account=1, with its unique key; there is 1 job\n"
        f"  job {one.id} has the key 'by hand'; its arguments make '"
    )
    with pytest.raises(AssertionError, match=r"there is none$"):
        assert_unique(kit_session, sync, account=2)
    with pytest.raises(ArgumentsError, match="send is not unique"):
        assert_unique(kit_session, send)


def test_a_scoped_session_will_do(kit_session: Session, kit_url: str) -> None:
    scoped = scoped_session(sessionmaker(kit_session.get_bind(), join_transaction_mode="create_savepoint"))
    job = send.enqueue(scoped, email="a@b.c")
    assert assert_enqueued(scoped, send) is job
    scoped.remove()


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


HOW = r": write @jobs.task above a function; a class that is a task is given as jobs.tasks\['its name'\]"


@pytest.mark.parametrize("what", [Greet, Greet("Ada"), a_function, "send"])
def test_anything_but_a_task_is_refused_with_the_remedy(kit_session: Session, what: Any) -> None:
    for call in (assert_enqueued, assert_unique):
        with pytest.raises(ArgumentsError, match=f"expected a task, got .*{HOW}"):
            call(kit_session, what)
    for either in (enqueued, assert_not_enqueued, make_job):
        with pytest.raises(ArgumentsError, match=f"expected a task or the Jobs, got .*{HOW}"):
            either(kit_session, what)
    with pytest.raises(ArgumentsError, match=r"expected the Jobs, got .*: write drain"):
        startable(kit_session, what)


def test_a_task_is_not_the_jobs_and_they_are_no_task(kit_session: Session) -> None:
    task: Any = send
    for call in (partial(drain, task, kit_session), partial(assert_starts, kit_session, task, 1)):
        with pytest.raises(ArgumentsError, match=r"expected the Jobs, got <Task send .*write drain\(jobs, session\)"):
            call()
    with pytest.raises(ArgumentsError, match=r"expected a task, got <.*Jobs"):
        assert_enqueued(kit_session, cast("Any", jobs))
