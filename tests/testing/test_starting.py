"""Assertions about startable jobs behind limits, pauses and orders, without a worker."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqla_jobs import ConfigurationError
from sqla_jobs.testing import assert_starts, assert_waits, drain, make_job, startable
from tests.testing.kit_shop import fetch, jobs, paced, send

pytestmark = pytest.mark.filterwarnings("ignore:it goes in the next release")


def test_startable_jobs_are_listed_in_order_and_not_started(kit_session: Session) -> None:
    late = send.options(priority=5).enqueue(kit_session, email="late")
    soon = send.enqueue(kit_session, email="soon")
    mail = send.options(queue="mail").enqueue(kit_session, email="mail")
    send.options(delay=timedelta(hours=1)).enqueue(kit_session, email="later")
    assert startable(kit_session, jobs) == [soon, late, mail]
    assert startable(kit_session, jobs, queues=["mail"]) == [mail]
    with pytest.raises(ConfigurationError, match="queues"):
        startable(kit_session, jobs, queues="mail")
    assert [soon.state, soon.attempt, mail.state] == ["queued", 0, "queued"]
    assert kit_session.scalar(select(func.count()).select_from(jobs.Process)) == 0
    assert kit_session.scalar(select(func.count()).select_from(jobs.Limit)) == 0


def test_a_concurrency_limit_counts_running_and_startable_jobs(kit_session: Session) -> None:
    one = make_job(kit_session, fetch, state="running", args={"account": 1})
    same = fetch.enqueue(kit_session, account=1)
    first, second = (fetch.enqueue(kit_session, account=2) for _ in range(2))
    assert startable(kit_session, jobs) == [first]
    assert_starts(kit_session, jobs, first)
    assert_waits(kit_session, jobs, same, because=str(one.id))
    assert_waits(kit_session, jobs, second.id)


@pytest.mark.slow
def test_a_group_is_found_beyond_hundreds_that_are_full(kit_session: Session) -> None:
    for account in range(201):
        make_job(kit_session, fetch, state="running", args={"account": 1000 + account})
    fetch.enqueue_many(kit_session, ({"account": 1000 + account} for account in range(201)))
    starts = fetch.enqueue(kit_session, account=9999)
    assert startable(kit_session, jobs) == [starts]


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["psycopg", "psycopg_async", "asyncpg"])
def test_an_asynchronous_session_is_asked_too(kit_url: str, driver: str) -> None:
    def look(session: Session) -> None:
        one = make_job(session, fetch, state="running", args={"account": 1})
        waits, starts = (fetch.enqueue(session, account=n) for n in (1, 2))
        plain = send.enqueue(session, email="a@b.c")
        made = [paced.enqueue(session, n=n) for n in range(3)]
        session.add(sql := jobs.Job(task="fetch", args={"account": 3}))
        session.flush()
        assert {*startable(session, jobs)} == {starts, plain, *made[:2], sql}
        assert_waits(session, jobs, waits, because=f"1 runs, job {one.id}")
        assert_starts(session, jobs, starts)
        jobs.set_limit(session, queue="default", running=4)
        assert len(startable(session, jobs)) == 3
        jobs.clear_limit(session, queue="default")
        drained = drain(jobs, session, limits=True)
        assert (drained, drained.waiting) == (5, [waits.id, made[2].id])
        assert "is used up: 2 of at most 2 starts" in jobs.why(session, made[2])[-1]

    async def run() -> None:
        engine = create_async_engine(kit_url.replace("+psycopg", f"+{driver}"))
        async with engine.connect() as connection, connection.begin() as transaction:
            async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
                await session.run_sync(look)
            await transaction.rollback()
        await engine.dispose()

    asyncio.run(run())


def test_a_failure_shows_the_reasons(kit_session: Session) -> None:
    make_job(kit_session, fetch, state="running", args={"account": 1})
    waits = fetch.enqueue(kit_session, account=1)
    starts = fetch.enqueue(kit_session, account=2)
    kit_session.flush()
    with pytest.raises(AssertionError, match="limit fetch of key 1") as raised:
        assert_starts(kit_session, jobs, waits)
    assert "No live worker" not in str(raised.value)
    with pytest.raises(AssertionError, match=f"job {starts.id}"):
        assert_waits(kit_session, jobs, starts)
    with pytest.raises(AssertionError, match=f"job {waits.id}"):
        assert_waits(kit_session, jobs, waits, because="a pause")


def test_a_pause_lets_nothing_start(kit_session: Session) -> None:
    job = send.options(queue="mail").enqueue(kit_session, email="a@b.c")
    jobs.pause(kit_session, "mail", reason="the provider is down")
    assert startable(kit_session, jobs) == []
    assert_waits(kit_session, jobs, job, because="the provider is down")


def test_groups_take_turns_as_with_workers(kit_session: Session) -> None:
    @jobs.task(name="fair", fair_by="tenant")
    def fair(tenant: str) -> str:
        return tenant

    made = {name: fair.enqueue(kit_session, tenant=name[0]) for name in ["a1", "a2", "a3", "b1", "b2", "c1"]}
    turns = [made[name] for name in ["a1", "b1", "c1", "a2", "b2", "a3"]]
    assert startable(kit_session, jobs) == turns
    assert drain(jobs, kit_session, limits=True) == 6
    assert [*kit_session.scalars(select(jobs.Run.job_id).order_by(jobs.Run.id))] == [job.id for job in turns]
