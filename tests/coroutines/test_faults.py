"""Coroutine tasks when processes are killed or stopped, connections are cut, and commits are cancelled."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from tests import coroutine_shop as shop
from tests.conftest import StartWorker
from tests.coroutine_shop import Effect, jobs
from tests.counting import states, worker_pids
from tests.helpers import wait_until

pytestmark = pytest.mark.slow
SHOP = "tests.coroutine_shop:jobs"


def effects(engine: Engine) -> Counter[int]:
    with Session(engine) as session:
        return Counter(session.scalars(select(Effect.n)))


def outcomes(engine: Engine) -> Counter[str]:
    with Session(engine) as session:
        return Counter(str(outcome) for outcome in session.scalars(select(jobs.Run.outcome)))


def enqueue(session: Session, count: int, seconds: float) -> None:
    """Both kinds, in turn."""
    for n in range(count):
        task = shop.write if n % 2 else shop.write_plainly
        task.enqueue(session, n=n, seconds=seconds)
    session.commit()


def slow_commits(session: Session, seconds: float) -> None:
    """From now on a COMMIT that has written an effect takes so long."""
    session.execute(
        text(
            f"""
            CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                PERFORM pg_sleep({seconds}); RETURN NULL;
            END $$;
            CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION dawdle();
            """
        )
    )
    session.commit()


@pytest.mark.promise("Nothing is lost", "Database effects happen exactly once")
def test_a_killed_process_loses_no_coroutine_and_doubles_none(
    session: Session,
    database: Engine,
    database_url: str,
    start_worker: StartWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over asyncpg; the other tests of this module are over psycopg."""
    enqueue(session, 120, seconds=0.05)
    monkeypatch.setenv("SHOP_URL", database_url)
    start_worker(None, "--queues", "default=6", application="tests.coroutine_shop:over_asyncpg()")
    for done in (20, 50, 80):
        wait_until(lambda done=done: len(effects(database)) >= done and worker_pids(database))  # type: ignore[misc]
        victim = worker_pids(database)[-1]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda victim=victim: victim not in worker_pids(database))  # type: ignore[misc]
    wait_until(lambda: states(database) == {"succeeded": 120}, timeout=60)
    assert effects(database) == dict.fromkeys(range(120), 1)
    assert 0 < outcomes(database)["lost"] <= 18
    with Session(database) as other:
        assert other.scalar(select(func.sum(jobs.Job.attempt))) == sum(outcomes(database).values())


def test_a_stopped_process_commits_nothing_of_what_others_have_taken_over(
    session: Session, database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    enqueue(session, 20, seconds=1.0)
    first = start_worker(database_url, "--queues", "default=20", "--hung-after", "2000", application=SHOP)
    wait_until(lambda: states(database)["running"] == 20)
    os.killpg(first.pid, signal.SIGSTOP)
    start_worker(database_url, "--queues", "default=20", application=SHOP)
    wait_until(lambda: outcomes(database)["lost"] == 20, timeout=30)
    os.killpg(first.pid, signal.SIGCONT)
    wait_until(lambda: states(database) == {"succeeded": 20}, timeout=30)
    assert effects(database) == dict.fromkeys(range(20), 1)


def test_cut_connections_cost_an_attempt_and_no_effect(
    session: Session, database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    enqueue(session, 60, seconds=0.1)
    start_worker(database_url, "--queues", "default=6", application=SHOP)
    for done in (10, 30):
        wait_until(lambda done=done: len(effects(database)) >= done)  # type: ignore[misc]
        cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()"
        session.execute(text(f"{cut} AND pid <> pg_backend_pid()"))
        session.rollback()
        database.dispose()
    wait_until(lambda: states(database) == {"succeeded": 60}, timeout=60)
    assert effects(database) == dict.fromkeys(range(60), 1)


def test_a_loop_that_is_held_up_for_ever_costs_its_process_and_nobody_else_an_effect(
    session: Session, database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    """The coroutine has a timeout, which cannot be delivered."""
    for n in range(10):
        shop.write.enqueue(session, n=n, seconds=0.2)
    blocked = shop.block_for_ever.enqueue(session)
    session.commit()
    start_worker(database_url, "--queues", "default=20", "--kill-after", "1", application=SHOP)
    wait_until(lambda: states(database) == {"succeeded": 10, "failed": 1}, timeout=30)
    assert effects(database) == dict.fromkeys(range(10), 1)
    (run,) = session.get_one(jobs.Job, blocked.id, populate_existing=True).runs
    assert (run.error_type, run.outcome) == ("TimeoutError", "failed")


def test_a_coroutine_that_swallows_its_cancel_costs_no_process(
    session: Session, database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    shop.deaf_twice.enqueue(session, seconds=5)
    session.commit()
    start_worker(database_url, "--kill-after", "1", application=SHOP)
    wait_until(lambda: states(database) == {"failed": 1}, timeout=30)
    (pid,) = worker_pids(database)
    shop.nothing.enqueue(session)
    session.commit()
    wait_until(lambda: states(database) == {"failed": 1, "succeeded": 1})
    assert worker_pids(database) == [pid]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_commit_that_is_cancelled_is_what_the_database_says(session: Session, database: Engine, driver: str) -> None:
    """The application's loop cancels all that it runs, as it does when it ends, in the middle of COMMITs."""
    slow_commits(session, 0.5)
    for n in range(8):
        shop.write.enqueue(session, n=n)
    session.commit()

    def committing() -> int:
        with Session(database) as other:
            sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
            return other.scalar(text(f"{sleeping} AND datname = current_database()")) or 0

    async def serve() -> None:
        engine = create_async_engine(database.url.set(drivername=f"postgresql+{driver}"))
        jobs.bind(database, async_bind=engine)
        async with jobs.worker({"default": 4}, clock=False):
            await asyncio.to_thread(wait_until, lambda: committing() == 4)
            mine = asyncio.current_task()
            for task in asyncio.all_tasks():
                if task is not mine:
                    task.cancel()
            await asyncio.sleep(0.1)
        await engine.dispose()

    asyncio.run(serve())
    told = outcomes(database)
    assert told["retried"] == 4
    assert told["succeeded"] == len(effects(database))  # nothing says that it succeeded but what has
    session.execute(text("DROP TRIGGER dawdle ON effects"))
    session.execute(text("UPDATE sqla_jobs SET run_at = now() WHERE state = 'scheduled'"))
    session.commit()
    jobs.bind(database)
    jobs.worker(lease=3, heartbeat=1).drain()
    assert states(database) == {"succeeded": 8}
    assert effects(database) == dict.fromkeys(range(8), 1)
