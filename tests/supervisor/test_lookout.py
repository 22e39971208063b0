"""A parent looks for work on behalf of all its children: few connections, few statements, no job that waits."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, func, make_url, select, text
from sqlalchemy.orm import Session

from tests import shop
from tests.conftest import StartWorker
from tests.counting import effects, states, worker_pids
from tests.helpers import wait_until
from tests.shop import jobs

pytestmark = pytest.mark.slow

CALM = ("--heartbeat", "5", "--lease", "30")
POLLS = (*CALM, "--poll", "1")
"""For jobs that nobody announced."""
UNANNOUNCED = text(
    "INSERT INTO sqla_jobs (task, state, queue, args) VALUES ('mark', 'queued', :queue, CAST(:args AS jsonb))"
)


@pytest.fixture
def beside(database_url: str) -> Any:
    """A connection to another database of the same server: it counts nothing of its own."""
    engine = create_engine(make_url(database_url).set(database="postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def connections(beside: Connection, database_url: str) -> int:
    """Of others than this test, whose own engine has one."""
    counted = text("SELECT count(*) FROM pg_stat_activity WHERE datname = :name AND backend_type = 'client backend'")
    return int(beside.execute(counted, {"name": make_url(database_url).database}).scalar_one())


def transactions(beside: Connection, database_url: str) -> int:
    ended = text("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = :name")
    return int(beside.execute(ended, {"name": make_url(database_url).database}).scalar_one())


def test_children_at_rest_hold_a_connection_each_and_a_host_sends_three_statements_a_second(
    database: Engine, database_url: str, start_worker: StartWorker, beside: Connection
) -> None:
    """The server's own statements count, too, so one calm window is enough. Looks of the children would add four."""
    options = (*POLLS, "--processes", "4", "--concurrency", "2", "--clock")
    start_worker(database_url, *options, application="tests.pruned_shop:jobs")  # pruning is no reason to keep one
    with Session(database) as session:
        shop.hold_the_gil_for.enqueue_many(session, ({"seconds": 0} for _ in range(300)))  # it needs no connection
        session.commit()
    wait_until(lambda: states(database) == {"succeeded": 300}, timeout=60)
    wait_until(lambda: len(worker_pids(database)) == 4, timeout=60)
    database.dispose()
    parent, clock = 3, 1
    at_rest = 4 + parent + clock
    wait_until(lambda: connections(beside, database_url) <= at_rest, timeout=60)
    seconds = 3.0

    def sent() -> float:
        before, began = transactions(beside, database_url), time.monotonic()
        wait_until(lambda: time.monotonic() > began + seconds)
        return (transactions(beside, database_url) - before) / seconds

    wait_until(lambda: sent() <= 4.0, timeout=40)
    with Session(database) as session:  # a claim that finds nothing
        session.execute(select(func.pg_notify(jobs._models.channel, "default")))
        session.commit()
    database.dispose()
    wait_until(lambda: connections(beside, database_url) > at_rest, message="nobody looks what it may have been given")
    wait_until(lambda: connections(beside, database_url) <= at_rest, timeout=60)


def is_marked(engine: Engine, n: int) -> bool:
    return n in effects(engine, "plain")


def test_jobs_that_one_child_has_claimed_ahead_go_to_an_idle_one_when_long_jobs_hold_them_up(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    start_worker(database_url, *CALM, "--processes", "2", "--concurrency", "1")
    wait_until(lambda: len(worker_pids(database)) == 2, timeout=60)
    with Session(database) as session:
        shop.hold_the_gil_for.enqueue_many(session, ({"seconds": 0} for _ in range(2000)))
        shop.sleep_in_c.enqueue_many(session, ({"seconds": 3} for _ in range(6)))
        session.commit()
    wait_until(lambda: states(database)["succeeded"] >= 2000, timeout=30)
    running = select(jobs.Job.process_id).where(jobs.Job.state == "running")
    with Session(database) as session:
        wait_until(lambda: len(set(session.scalars(running))) == 2, timeout=6, message="one of the two is idle")


def test_a_child_that_stops_answers_for_no_job(
    database: Engine, database_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Somebody has signaled it, and its parent does not know."""
    start_worker(database_url, *CALM, "--processes", "2", "--concurrency", "2")
    wait_until(lambda: len(worker_pids(database)) == 2, timeout=60)
    with Session(database) as session:
        shop.sleep_in_c.enqueue(session, seconds=15)
        session.commit()
        wait_until(lambda: states(database)["running"] == 1)
        pid = session.scalar(
            select(jobs.Process.pid).where(jobs.Process.id == jobs.Job.process_id, jobs.Job.state == "running")
        )
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: "stopping: 1 running" in (tmp_path / "worker-0.log").read_text())
        for n in range(6):
            shop.mark.enqueue(session, n=n)
            session.commit()
            wait_until(partial(is_marked, database, n), timeout=3)


def test_jobs_of_which_only_a_process_that_hangs_was_told_go_to_others(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    """It still seems idle when it is told."""
    start_worker(database_url, *CALM, "--processes", "2", "--concurrency", "1", "--hung-after", "0")
    wait_until(lambda: len(worker_pids(database)) == 2, timeout=60)
    os.kill(worker_pids(database)[0], signal.SIGSTOP)
    with Session(database) as session:
        for n in range(10):
            shop.mark.enqueue(session, n=n)
            session.commit()
            wait_until(partial(is_marked, database, n), timeout=20)


def test_a_job_that_is_tried_again_soon_is_promoted_while_its_process_still_looks_busy(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    start_worker(database_url, *CALM, "--concurrency", "1")
    with Session(database) as session:
        shop.good_at_last.enqueue(session, seconds=0.7)
        session.commit()
    wait_until(lambda: states(database) == {"succeeded": 1})
    waits = "SELECT started_at - lag(finished_at) OVER (ORDER BY id) AS wait FROM sqla_runs"
    with Session(database) as session:
        longest = session.execute(text(f"SELECT extract(epoch FROM max(wait)) FROM ({waits}) AS of_each"))
        assert float(longest.scalar_one()) < 0.8


def test_a_poll_that_waited_for_a_lock_holds_up_no_later_one(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    start_worker(database_url, *POLLS, "--concurrency", "1")
    wait_until(lambda: len(worker_pids(database)) == 1, timeout=60)
    with database.begin() as connection:
        connection.execute(text("LOCK TABLE sqla_jobs IN ACCESS EXCLUSIVE MODE"))
        began = time.monotonic()
        wait_until(lambda: time.monotonic() > began + 4)
    wait_until(lambda: time.monotonic() > began + 5)
    with database.begin() as connection:
        connection.execute(UNANNOUNCED, {"queue": "default", "args": '{"n": 1}'})
    wait_until(partial(is_marked, database, 1), timeout=10)
