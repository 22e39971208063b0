"""Coroutine tasks in a worker of this process."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from tests import coroutine_shop as shop
from tests.coroutine_shop import Order, jobs, seen
from tests.coroutines.rows import asynchronous, effects, job, outcomes, running
from tests.helpers import wait_until


def drain(**options: Any) -> int:
    return jobs.worker(**options).drain()


def test_a_coroutine_that_raises_is_rolled_back_and_retried_by_its_policy(session: Session) -> None:
    one = shop.fail.enqueue(session, n=1)
    session.commit()
    drain()
    assert outcomes(session, one.id) == ["retried", "retried", "failed"]
    assert effects(session) == []
    run = job(session, one.id).runs[0]
    assert (run.error_type, run.error) == ("ValueError", "no 1")
    assert "in fail" in (run.traceback or "")


def test_what_is_raised_in_a_task_group_means_what_it_means_outside(session: Session) -> None:
    told: dict[str, tuple[object, ...]] = {
        "snooze": ("snoozed", None, None),
        "busy": ("retried", "OSError", "busy"),
        "wrong": ("failed", "ValueError", "wrong"),
        "busy cancel snooze": ("cancelled", "Cancel", "not needed"),
        "wrong snooze later": ("snoozed", None, None),
        "again": ("retried", "Retry", "try again in 7200 s"),
        "busy busy": ("retried", "ExceptionGroup", "unhandled errors in a TaskGroup (1 sub-exception)"),
        "busy wrong": ("failed", "ExceptionGroup", "unhandled errors in a TaskGroup (1 sub-exception)"),
    }
    made = {how: shop.ask_all.enqueue(session, answers=how.split()) for how in told}
    session.commit()
    drain()
    runs = {how: job(session, made[how].id).runs for how in told}
    assert {how: (run.outcome, run.error_type, run.error) for how, (run,) in runs.items()} == told
    assert "in ask\n" in (runs["wrong"][0].traceback or "")
    waits = {how: job(session, made[how].id).run_at for how in ("snooze", "wrong snooze later")}
    assert waits["wrong snooze later"] - waits["snooze"] > timedelta(minutes=59)


@pytest.mark.slow
def test_the_number_of_a_queue_counts_both_kinds(session: Session) -> None:
    for _ in range(4):
        shop.nap.enqueue(session, seconds=0.3)
        shop.nap_plainly.enqueue(session, seconds=0.3)
    session.commit()
    most = 0
    with jobs.worker({"default": 3}, clock=False) as worker:
        while worker.runs < 8:
            most = max(most, len(running(worker)))
            time.sleep(0.01)
    assert most == 3


@pytest.mark.slow
def test_two_thousand_sleeping_coroutines_take_no_threads(session: Session) -> None:
    shop.nap.enqueue_many(session, ({"seconds": 1.0} for _ in range(2000)))
    session.commit()
    names, began = set[str](), time.monotonic()
    with jobs.worker({"default": 2000}, clock=False) as worker:
        while worker.runs < 2000:
            names |= {thread.name for thread in threading.enumerate()}
            time.sleep(0.02)
    assert time.monotonic() - began < 30
    assert "sqla_jobs-loop" in names
    assert not any(name.startswith("sqla_jobs-default") for name in names)


@pytest.mark.slow
def test_a_cancel_ends_a_running_coroutine(session: Session) -> None:
    one = shop.wait_for_cancel.enqueue(session, n=1)
    session.commit()
    with jobs.worker(clock=False):
        wait_until(lambda: "begun" in seen)
        jobs.cancel(session, one.id)
        session.commit()
        wait_until(lambda: job(session, one.id).state == "cancelled")
    assert (seen, effects(session)) == (["begun", "finally"], [])


@pytest.mark.slow
def test_a_coroutine_that_swallows_its_cancel_is_abandoned_and_holds_nothing(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    session.add(order := Order())
    one = shop.deaf.enqueue(session, order=order, seconds=6)
    session.commit()
    with jobs.worker({"default": 1}, kill_after=0.3, clock=False) as worker:
        wait_until(lambda: job(session, one.id).state == "failed")
        session.execute(text("SET LOCAL lock_timeout = '2s'"))
        session.execute(text("UPDATE orders SET status = 'free'"))  # its lock is gone
        session.commit()
        shop.nothing.enqueue(session)
        session.commit()
        wait_until(lambda: worker.runs == 2)  # and so is its slot
    assert "in deaf" in caplog.text
    assert "cancelled" in seen
    session.refresh(order)
    assert order.status == "free"


@pytest.mark.slow
def test_what_holds_up_the_loop_is_logged_with_its_stack(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    one = shop.block.enqueue(session, seconds=1.8)
    session.commit()
    drain()
    (line,) = [record.getMessage() for record in caplog.records if "blocked the event loop" in record.getMessage()]
    assert f"job {one.id} block" in line
    assert "in block" in line
    assert "asyncio/" not in line
    assert outcomes(session, one.id) == ["succeeded"]


@pytest.mark.slow
def test_a_worker_that_stops_gives_coroutines_the_grace_and_then_cancels_them(session: Session) -> None:
    short, long = shop.nap.enqueue(session, seconds=0.5), shop.wait_for_cancel.enqueue(session, n=1)
    session.commit()
    with jobs.worker(grace=1.5, clock=False):
        wait_until(lambda: "begun" in seen)
    assert outcomes(session, short.id) == ["succeeded"]
    assert outcomes(session, long.id) == ["lost"]
    assert seen == ["begun", "finally"]
    assert effects(session) == []
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("sqla_jobs-loop")] == []


@pytest.mark.parametrize(("driver", "options"), [("psycopg", {}), ("asyncpg", {"ssl": "prefer"})])
def test_an_asynchronous_engine_may_be_bound(
    session: Session, database: Engine, driver: str, options: dict[str, str]
) -> None:
    """For plain tasks and the worker itself an engine of psycopg is made of its address."""
    address = database.url.set(drivername=f"postgresql+{driver}").update_query_dict(options)
    jobs.bind(create_async_engine(address))
    one, two = shop.write.enqueue(session, n=1), shop.write_plainly.enqueue(session, n=2)
    session.commit()
    assert drain() == 2
    assert isinstance(jobs._binds.bind, Engine)
    jobs._binds.bind.dispose()
    assert outcomes(session, one.id) == outcomes(session, two.id) == ["succeeded"]
    assert effects(session) == [1, 2]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_job_is_erased_in_the_commit_of_its_coroutine(session: Session, database: Engine, driver: str) -> None:
    jobs.bind(database, async_bind=asynchronous(database, driver))
    one = shop.forget.enqueue(session, n=7)
    session.commit()
    drain()
    ended = job(session, one.id)
    assert (ended.state, ended.args, ended.result) == ("succeeded", {"(erased)": True}, None)
    assert effects(session) == [7]


@pytest.mark.slow
def test_the_loop_of_the_application_runs_coroutines_with_its_own_resources(session: Session, database: Engine) -> None:
    for n in range(20):
        shop.write.enqueue(session, n=n)
    shop.write_plainly.enqueue(session, n=20)
    told = shop.tell_resource.enqueue(session)
    session.commit()

    async def serve() -> list[bool]:
        engine = asynchronous(database, "asyncpg")  # its connections belong to this loop
        shop.resource.set("of the application")
        jobs.bind(database, async_bind=engine)
        before = asyncio.get_running_loop().get_task_factory()
        async with jobs.worker(queues={"default": 4}, clock=False) as worker, engine.connect() as connection:
            while worker.runs < 22:
                assert await connection.scalar(select(func.now())) is not None
        await asyncio.sleep(0)
        await engine.dispose()
        return [before is asyncio.get_running_loop().get_task_factory()]

    assert asyncio.run(serve()) == [True]
    assert job(session, told.id).runs[0].result == "of the application"
    assert effects(session) == list(range(21))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first", "last"])
def test_workers_that_share_a_loop_leave_it_as_it_was_whichever_stops_first(
    session: Session, caplog: pytest.LogCaptureFixture, order: tuple[int, int]
) -> None:
    async def serve() -> list[object]:
        loop = asyncio.get_running_loop()
        before = loop.get_task_factory()
        workers = [await jobs.worker(clock=False).__aenter__() for _ in range(2)]
        first, last = (workers[place] for place in order)
        await first.__aexit__(None, None, None)
        shop.leave_behind.enqueue(session, n=1)
        session.commit()
        await asyncio.to_thread(wait_until, lambda: last.runs == 1)  # which still notes what its runs begin
        await last.__aexit__(None, None, None)
        await asyncio.sleep(0)
        return [before, loop.get_task_factory()]

    before, after = asyncio.run(serve())
    assert before is after
    assert seen == ["forgotten ended"]
    assert "forgotten (leave_behind.<locals>.forgotten)" in caplog.text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("is_cancelled", [False, True], ids=["closed", "ended by asyncio"])
def test_a_worker_whose_loop_is_closed_gives_back_what_it_holds_and_signs_off(
    session: Session, is_cancelled: bool
) -> None:
    enqueued = [shop.stay.enqueue(session) for _ in range(3)]
    session.commit()
    loop = asyncio.new_event_loop()

    async def linger() -> None:
        """Keep the loop ending until the next job is claimed."""
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.to_thread(wait_until, lambda: job(session, enqueued[1].id).state == "running")

    async def serve() -> None:
        await jobs.worker({"default": 1}, clock=False).__aenter__()
        await asyncio.to_thread(wait_until, lambda: seen == ["begun"])
        if is_cancelled:
            lingering.append(asyncio.create_task(linger()))
        await asyncio.sleep(0)

    lingering: list[asyncio.Task[None]] = []
    if is_cancelled:
        asyncio.run(serve())
    else:
        loop.run_until_complete(serve())
    loop.close()
    wait_until(lambda: not session.scalar(select(func.count()).select_from(jobs.Process)))
    assert seen == ["begun"]
    assert [outcomes(session, one.id) for one in enqueued] == [["lost"], [], []]
    assert [(job(session, one.id).state, one.attempt) for one in enqueued[1:]] == [("queued", 0)] * 2


@pytest.mark.slow
def test_jobs_that_were_handed_over_and_have_not_begun_are_given_back_when_the_worker_stops(session: Session) -> None:
    """The loop is held up as they come."""
    shop.block.enqueue(session, seconds=1.0)
    for n in range(50):
        shop.write.enqueue(session, n=n, seconds=0.1)
    session.commit()
    with jobs.worker({"default": 51}, clock=False):
        wait_until(lambda: session.scalar(text("SELECT count(*) FROM sqla_jobs WHERE state = 'running'")) == 51)
        session.rollback()
    session.rollback()
    assert set(session.scalars(text("SELECT state FROM sqla_jobs"))) <= {"succeeded", "queued"}
    written = "SELECT count(*) FROM sqla_jobs WHERE state = 'succeeded' AND task = 'write'"
    assert len(effects(session)) == session.scalar(text(written))
    assert not session.scalar(text("SELECT count(*) FROM sqla_runs WHERE outcome <> 'succeeded'"))


@pytest.mark.slow
def test_a_worker_stops_also_after_the_loop_of_its_application_has_closed(session: Session) -> None:
    worker = jobs.worker(clock=False)
    asyncio.run(worker.__aenter__())
    worker.stop()
    assert session.scalar(select(func.count()).select_from(jobs.Process)) == 0
