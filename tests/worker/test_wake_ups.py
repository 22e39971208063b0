"""Who is told when a job may start: no worker here polls, and each job starts all the same."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, registry

from sqla_jobs import Jobs, Unique
from tests import limited_shop as shop
from tests.counting import states
from tests.helpers import wait_until
from tests.limited_shop import jobs
from tests.limits.attempts import enqueue, left

pytestmark = pytest.mark.slow

SWEPT = 1.5
"""Seconds after a job has ended in which its worker still looks for more."""


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


def wait_for_all(engine: Engine, timeout: float = 15) -> None:
    wait_until(lambda: left(engine) == 0, timeout=timeout)


def test_a_job_that_another_worker_promotes_starts(database: Engine) -> None:
    """Both workers wake at the moment at which it is due, and only one of them promotes it."""
    with jobs.worker(["first"], clock=False), jobs.worker(["second"], clock=False), Session(database) as session:
        for n in range(40):
            for task in (shop.plain, shop.roomy):
                queue = ("first", "second")[n % 2]
                later = task.options(queue=queue, delay=0.5 + n / 20)
                later.enqueue(session, **({"n": n} if task is shop.plain else {"account": n}))
        session.commit()
        wait_for_all(database)


@pytest.mark.parametrize("task", [shop.plain, shop.pair], ids=["plain", "limited"])
def test_jobs_that_a_stopping_worker_gives_back_are_started_by_another(database: Engine, task: Any) -> None:
    stopping = jobs.worker({"default": 1}, grace=0, clock=False)
    stopping.start()
    enqueue(database, task, [{"n": n, "seconds": 2.0 if n == 300 else 0.0} for n in range(320)])
    wait_until(lambda: left(database) == 20)
    with jobs.worker({"default": 1}, clock=False):
        # what the first one claimed ahead is still there, or given back already, where this one took long to start
        wait_until(lambda: states(database)["running"] >= 2 or left(database) < 20)
        stopping.stop()
        wait_for_all(database)


def test_jobs_that_are_held_up_behind_a_long_one_are_started_by_another_worker(database: Engine) -> None:
    with jobs.worker({"default": 1}, clock=False), jobs.worker({"default": 1}, clock=False):
        enqueue(database, shop.plain, [{"n": n, "seconds": 8.0 if n == 300 else 0.0} for n in range(400)])
        wait_until(lambda: states(database) == {"succeeded": 399, "running": 1}, timeout=6)


def test_a_retry_whose_worker_is_gone_starts_when_it_is_due(database: Engine) -> None:
    with jobs.worker({"default": 1}, clock=False):
        enqueue(database, shop.plain, [{"n": 1, "seconds": 1.0}])
        wait_until(lambda: states(database) == {"running": 1})
        with jobs.worker({"default": 1}, clock=False):
            enqueue(database, shop.flaky, [{"failures": 1}])
            wait_until(lambda: states(database)["scheduled"] == 1)
        wait_for_all(database)


def test_jobs_of_a_dead_process_are_started_by_whoever_serves_their_queue(database: Engine) -> None:
    """The worker that rescues them serves another queue."""
    with (
        jobs.worker(["other"], heartbeat=0.2, lease=1.0, clock=False),
        jobs.worker(heartbeat=10, lease=60, clock=False),
    ):
        with Session(database) as session:
            shop.plain.enqueue(session, n=1)
            shop.busy.enqueue(session, seconds=0)
            session.flush()
            lease = "process_id = gen_random_uuid(), current_run_id = nextval('sqla_runs_id_seq')"
            session.execute(text(f"UPDATE sqla_jobs SET state = 'running', attempt = 1, started_at = now(), {lease}"))
            session.commit()
        enqueue(database, shop.busy, [{"seconds": 0}])
        wait_until(lambda: states(database) == {"succeeded": 2, "failed": 1})


@pytest.mark.parametrize("of_queue", [True, False], ids=["plain", "limited"])
def test_jobs_of_a_pause_that_ends_by_itself_start(database: Engine, of_queue: bool) -> None:
    task: Any = shop.plain if of_queue else shop.pair
    with jobs.worker(clock=False), Session(database) as session:
        which: dict[str, Any] = {} if of_queue else {"task": task}
        jobs.pause(session, "default" if of_queue else None, until=timedelta(seconds=2), **which)
        session.commit()
        enqueue(database, task, [{"n": 1}])
        wait_for_all(database)


@pytest.mark.parametrize(
    ("task", "by", "end"),
    [
        (shop.plain, "enqueue", "commit"),
        (shop.pair, "enqueue", "commit"),
        (shop.plain, "enqueue", "rollback"),
        (shop.pair, "enqueue_many", "close"),
        (shop.plain, "enqueue_many", "savepoint"),
        (shop.plain, "cancel", "rollback"),
        (shop.plain, "change", "rollback"),
    ],
)
def test_a_job_that_a_transaction_held_locked_starts_when_that_ends(
    database: Engine, task: Any, by: str, end: str
) -> None:
    once = task.options(unique=Unique(on_conflict="return"))
    with jobs.worker(clock=False), Session(database) as session:
        jobs.pause(session, "default")
        job = once.enqueue(session, n=1)
        session.commit()
        savepoint = session.begin_nested() if end == "savepoint" else session
        match by:
            case "enqueue":
                once.enqueue(session, n=1)
            case "enqueue_many":
                once.enqueue_many(session, [{"n": 1}])
            case "cancel":
                assert jobs.cancel(session, job)
            case _:
                job.priority = 9
        session.flush()
        with Session(database) as other:
            jobs.resume(other, "default")
            other.commit()
        enqueue(database, task, [{"n": 2}])
        wait_until(lambda: states(database) == {"succeeded": 1, "queued": 1})
        if end != "commit":
            time.sleep(SWEPT)
        getattr(savepoint, "rollback" if end == "savepoint" else end)()
        wait_for_all(database)


@pytest.mark.parametrize("many", [False, True])
def test_a_job_of_another_queue_that_a_unique_enqueue_held_locked_starts(database: Engine, many: bool) -> None:
    here, there = (shop.plain.options(unique=Unique(), queue=queue) for queue in ("default", "other"))
    with jobs.worker(["other"], clock=False), Session(database) as session:
        jobs.pause(session, "other")
        there.enqueue(session, n=1)
        session.commit()
        if many:
            here.enqueue_many(session, [{"n": 1}])
        else:
            here.enqueue(session, n=1)
        with Session(database) as other:
            jobs.resume(other, "other")
            there.enqueue(other, n=2)
            other.commit()
        wait_until(lambda: states(database) == {"succeeded": 1, "queued": 1})
        time.sleep(SWEPT)
        session.commit()
        wait_for_all(database)


def test_what_follows_a_failure_starts(database: Engine) -> None:
    with jobs.worker(clock=False):
        enqueue(database, shop.failing, [{}])
        wait_until(lambda: states(database) == {"failed": 1, "succeeded": 1})


@pytest.mark.parametrize("by", ["cancel", "delete"])
def test_the_next_job_of_a_key_starts_once_the_one_that_waits_for_its_retry_is_gone(database: Engine, by: str) -> None:
    with jobs.worker(clock=False), Session(database) as session:
        first = shop.ordered.enqueue(session, account=1, n=1, failures=5)
        shop.ordered.enqueue(session, account=1, n=2)
        session.commit()
        wait_until(lambda: states(database) == {"scheduled": 1, "queued": 1})
        if by == "cancel":
            assert jobs.cancel(session, first)
        else:
            session.delete(first)
        session.commit()
        wait_until(lambda: states(database, "ordered")["succeeded"] == 1, timeout=5)


def test_the_first_limit_of_all_holds_up_no_job(database: Engine) -> None:
    """Of an application that declares none: until then no worker looks behind limits."""
    plain: Jobs[Any] = Jobs(registry())

    @plain.task
    def work(n: int) -> None: ...

    plain.bind(database)
    with plain.worker(clock=False), Session(database) as session:
        enqueue(database, work, [{"n": n} for n in range(5)])
        wait_for_all(database)
        plain.set_limit(session, work, running=1)
        session.commit()
        enqueue(database, work, [{"n": n} for n in range(5)])
        wait_for_all(database)
