"""A worker whose start or stop fails halfway, or finds a silent server."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, func, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from sqla_jobs import Jobs
from sqla_jobs.runtime.service import Service
from sqla_jobs.worker.events import EventDelivery
from tests import leaving_shop, shop
from tests.helpers import states, wait_until
from tests.leaving_shop import jobs, leave
from tests.proxy import Proxy


@pytest.fixture
def application() -> Jobs[Any]:
    return leaving_shop.jobs


def threads() -> list[str]:
    """Our threads, except the one that sends wake-ups."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("sqla_jobs-") and name != "sqla_jobs-wakeup"]


def connections(engine: Engine) -> int:
    """How many connections workers and clocks have."""
    question = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                  AND application_name IN ('sqla-jobs worker', 'sqla-jobs clock')"""
    with engine.connect() as connection:
        return connection.scalar(text(question)) or 0


def assert_nothing_is_at_work(database: Engine) -> None:
    wait_until(lambda: threads() == [], timeout=5, message="threads are left")
    wait_until(lambda: connections(database) == 0, timeout=5, message="connections are left")
    with Session(database) as session:
        assert "running" not in states(session).values()


def rows(database: Engine) -> int:
    """How many workers and clocks have not signed off."""
    with Session(database) as session:
        return session.scalar(select(func.count()).select_from(jobs.Process)) or 0


def forbid_threads(monkeypatch: pytest.MonkeyPatch, first: int, last: int) -> None:
    """From now on, some of our threads cannot be started: the first to the last of those that are tried."""
    start, numbers = threading.Thread.start, itertools.count(1)

    def start_unless_forbidden(thread: threading.Thread) -> None:
        is_ours = thread.name.startswith("sqla_jobs-") and thread.name != "sqla_jobs-wakeup"
        if is_ours and first <= next(numbers) <= last:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_unless_forbidden)


@pytest.mark.slow
@pytest.mark.parametrize("more", [0, 1000])
@pytest.mark.parametrize(("kind", "least"), [("worker", 10), ("clock", 2)])
def test_a_start_that_lacks_a_thread_leaves_nothing_at_work(
    database: Engine, monkeypatch: pytest.MonkeyPatch, kind: str, least: int, more: int
) -> None:
    """In turn, each thread cannot be started: it alone, or also the next ones. Then the lease may have to end."""
    failed = 0
    for number in range(1, 25):
        with Session(database) as session:
            leave.enqueue(session, what="nothing")
            session.commit()
        service: Service = jobs.worker(clock=False) if kind == "worker" else jobs.clock()
        with monkeypatch.context() as shortage:
            forbid_threads(shortage, number, number + more)
            try:
                service.start()
            except (RuntimeError, OperationalError):  # the latter, if it is to connect in that thread
                failed += 1
                assert_nothing_is_at_work(database)
                assert more or rows(database) == 0
        service.stop()
        assert_nothing_is_at_work(database)
    assert failed >= least


def test_a_stop_whose_part_fails_ends_the_others_and_raises_the_error_at_the_end(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("in a part")

    monkeypatch.setattr(EventDelivery, "stop", fail)
    leaving_shop.left_contexts.clear()
    worker = jobs.worker(clock=False)
    worker.start()
    with pytest.raises(ZeroDivisionError, match="in a part"):
        worker.stop()
    assert leaving_shop.left_contexts == ["context"]
    assert_nothing_is_at_work(database)
    assert rows(database) == 0


@pytest.mark.slow
def test_a_stop_ends_in_time_while_the_server_is_silent(engine: Engine) -> None:
    """Claims, ends and heartbeats wait for answers, and a job waits for something else."""
    shop.Base.metadata.create_all(engine)
    shop.gate.clear()
    address = engine.url
    with Proxy((str(address.host), address.port or 5432)) as proxy:
        behind = create_engine(address.set(host="127.0.0.1", port=proxy.port))
        with Session(engine) as session:
            shop.wait.enqueue_many(session, ({"n": n} for n in range(4)))
            shop.wait.options(queue="other").enqueue(session, n=4)
            session.commit()
        worker = shop.jobs.worker(["default", "other"], bind=behind, grace=1.0, heartbeat=0.3, clock=False)
        worker.start()
        with Session(engine) as session:
            wait_until(lambda: [*states(session).values()].count("running") == 5)
        proxy.stall()
        shop.gate.set()
        before = time.monotonic()
        wait_until(lambda: time.monotonic() - before > 1.0)  # until all that can be sent is sent
        before = time.monotonic()
        worker.stop()
        assert time.monotonic() - before < 1.0 + 10.0
        proxy.go_on()
        behind.dispose()
