"""While a slot is free and a job may start, a worker looks for it: nothing here has a poll to wait for."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from tests import limited_shop as shop
from tests.counting import states
from tests.helpers import wait_until
from tests.limited_shop import jobs
from tests.limits.attempts import enqueue, left

pytestmark = pytest.mark.slow


def run_all(engine: Engine, *, workers: int = 1, concurrency: int = 8, timeout: float = 30) -> None:
    with ExitStack() as stack:
        for _ in range(workers):
            stack.enter_context(jobs.worker({"default": concurrency}, clock=False))
        wait_until(lambda: left(engine) == 0, timeout=timeout)


@pytest.mark.parametrize(
    ("task", "arguments", "workers"),
    [
        pytest.param(shop.wide, [{"key": 1, "n": n} for n in range(1000)], 1, id="one key that is never full"),
        pytest.param(shop.wide, [{"key": n % 500, "n": n} for n in range(1000)], 1, id="hundreds of keys"),
        pytest.param(shop.keyed, [{"account": n % 50} for n in range(400)], 2, id="keys of one job at a time"),
        pytest.param(shop.fair, [{"tenant": str(n % 3)} for n in range(1000)], 1, id="tenants in turn"),
        pytest.param(shop.fast, [{"n": n} for n in range(300)], 2, id="a rate"),
        pytest.param(shop.ordered, [{"account": n % 20, "n": n} for n in range(300)], 2, id="ordered keys"),
    ],
)
def test_all_that_waits_is_started(database: Engine, task: Any, arguments: list[dict[str, Any]], workers: int) -> None:
    enqueue(database, task, arguments)
    run_all(database, workers=workers)


@contextmanager
def interrupted_often() -> Generator[None]:
    """Between any two steps of a thread, another thread takes its time."""
    usual = sys.getswitchinterval()
    is_over = threading.Event()

    def take_time() -> None:
        while not is_over.is_set():
            pass

    other = threading.Thread(target=take_time)
    sys.setswitchinterval(1e-6)
    other.start()
    try:
        yield
    finally:
        is_over.set()
        other.join()
        sys.setswitchinterval(usual)


def test_the_time_of_a_rate_may_come_while_a_worker_goes_to_rest(database: Engine) -> None:
    enqueue(database, shop.dripping, [{"n": n} for n in range(250)])
    with interrupted_often():
        run_all(database)


def test_a_limit_that_an_operator_clears_holds_up_nothing_more(database: Engine) -> None:
    with (
        Session(database) as session,
        jobs.worker({"default": 8}, clock=False),
        jobs.worker({"default": 8}, clock=False),
    ):
        for running in (2, 0):
            jobs.set_limit(session, shop.plain, running=running)
            session.commit()
        enqueue(database, shop.plain, [{"n": n, "seconds": 0.05} for n in range(200)])
        jobs.clear_limit(session, shop.plain)
        session.commit()
        wait_until(lambda: left(database) == 0, timeout=20)


def test_a_place_that_this_worker_does_not_fill_is_taken_by_another(database: Engine) -> None:
    """Two places become free at once in the first queue, and only one job waits there."""
    second = shop.charge.options(queue="second")
    with jobs.worker({"default": 3}, clock=False), jobs.worker({"second": 2}, clock=False):
        enqueue(database, shop.charge, [{"n": n, "seconds": 1.0} for n in range(3)])
        wait_until(lambda: states(database) == {"running": 3})
        enqueue(database, shop.charge, [{"n": 3, "seconds": 3.0}])
        enqueue(database, second, [{"n": n} for n in range(4)])
        wait_until(lambda: states(database) == {"succeeded": 8}, timeout=15)


def test_a_place_in_a_limited_queue_is_taken_by_another_worker(database: Engine) -> None:
    with Session(database) as session:
        jobs.set_limit(session, queue="default", running=1)
        session.commit()
    enqueue(database, shop.plain, [{"n": 1, "seconds": 1.0}])
    stopping = jobs.worker({"default": 1}, clock=False)
    stopping.start()
    wait_until(lambda: states(database) == {"running": 1})
    enqueue(database, shop.plain, [{"n": 2}])
    with jobs.worker({"default": 1}, clock=False):
        stopping.stop()
        wait_until(lambda: left(database) == 0, timeout=15)


def test_a_job_that_only_an_operator_limits_does_not_wait_for_a_poll(database: Engine) -> None:
    with Session(database) as session:
        jobs.set_limit(session, shop.plain, running=1)
        session.commit()
        with jobs.worker(clock=False):
            began = time.monotonic()
            for n in range(4):
                shop.plain.enqueue(session, n=n)
                session.commit()
                wait_until(lambda: left(database) == 0)
            assert time.monotonic() - began < 10, "there is a look every 5 s"


def test_a_worker_that_stops_hands_over_what_ends_meanwhile(database: Engine) -> None:
    enqueue(database, shop.busy, [{"seconds": 1.0}, {"seconds": 0.0}])
    stopping = jobs.worker(clock=False)
    stopping.start()
    wait_until(lambda: states(database)["running"] == 1)
    with jobs.worker(clock=False):
        stopping.stop()
        wait_until(lambda: left(database) == 0, timeout=15)
