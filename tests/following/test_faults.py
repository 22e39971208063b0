"""Following jobs while the server restarts, and processes fork."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import Session

from sqla_jobs.postgres import LocalServer
from tests.following.application import Base, jobs, nap, settle
from tests.helpers import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer() as server:
        yield server


def state(engine: Engine, job_id: int) -> str | None:
    with Session(engine) as session:
        return session.scalar(select(jobs.Job.state).where(jobs.Job.id == job_id))


def test_a_restart_of_the_server_is_survived(server: LocalServer) -> None:
    engine = create_engine(server.url)
    Base.metadata.create_all(engine)
    jobs.bind(engine)
    with Session(engine) as session:
        job = nap.enqueue(session, seconds=3.0)
        session.commit()
        job_id = job.id
    with ThreadPoolExecutor(1) as threads, jobs.worker(clock=False):
        waiting = threads.submit(list, jobs.follow(job_id, timeout=60))
        wait_until(lambda: state(engine, job_id) == "running")
        server.restart()
        assert waiting.result(60)[-1].state == "succeeded"
    engine.dispose()


def test_a_forked_child_follows_by_a_hub_of_its_own(database: Engine) -> None:
    with Session(database) as session:
        before = settle.enqueue(session, n=1)
        session.commit()
        with jobs.worker(clock=False):
            assert settle.result(before, timeout=20) == 1
            after = settle.enqueue(session, n=2)
            session.commit()
            job_id = after.id
            pid = os.fork()
            if pid == 0:
                own = create_engine(database.url)
                jobs.bind(own)
                os._exit(0 if settle.result(job_id, timeout=20) == 2 else 1)
            assert os.waitpid(pid, 0)[1] == 0


def test_who_leaves_early_leaves_nothing_behind(database: Engine) -> None:
    with Session(database) as session:
        job = settle.enqueue(session, n=1)
        session.commit()
    for update in jobs.follow(job):
        assert update.state == "queued"
        break
    activity = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name ~ 'following'"
    )

    def is_gone() -> bool:
        with database.connect() as connection:  # one transaction sees one snapshot of it
            return connection.exec_driver_sql(activity).scalar() == 0

    wait_until(is_gone)


@pytest.mark.parametrize("timeout", [0, 1.5])
def test_the_timeout_is_kept_while_the_server_is_down(server: LocalServer, timeout: float) -> None:
    engine = create_engine(server.url)
    jobs.bind(engine)
    server.stop()

    async def wait_async() -> None:
        await jobs.wait_async(7, timeout=timeout)

    for wait in (lambda: jobs.wait(7, timeout=timeout), lambda: asyncio.run(wait_async())):
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="refused"):
            wait()
        assert timeout <= time.monotonic() - began < timeout + 2
    engine.dispose()
