"""Messages, times and ends of jobs that come at the worst moment. No worker here polls."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, registry

from sqla_jobs import ConcurrencyLimit, Jobs, RunContext
from sqla_jobs.queries.values import Among, Promotion
from sqla_jobs.runtime.promoter import Promoter
from sqla_jobs.worker.claimer import Claimer
from sqla_jobs.worker.limited_source import LimitedSource
from sqla_jobs.worker.lookout import OwnLookout
from tests import limited_shop as shop
from tests.helpers import wait_until
from tests.limited_shop import jobs
from tests.limits.attempts import enqueue, left

pytestmark = pytest.mark.slow


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


def test_a_pause_may_end_between_the_reading_of_the_clock_and_the_promotion(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote = Promoter._promote_among
    ends_at = 0.0

    def slowly(self: Promoter, which: Among) -> Promotion:
        if 0 < (ahead := ends_at - time.monotonic()) < 0.5:
            time.sleep(ahead + 0.1)
        return promote(self, which)

    monkeypatch.setattr(Promoter, "_promote_among", slowly)
    with Session(database) as session:
        jobs.pause(session, "default", until=timedelta(seconds=1.5))
        session.commit()
        ends_at = time.monotonic() + 1.5
        enqueue(database, shop.plain, [{"n": 1}])
        with jobs.worker(["default", "other"], clock=False):
            time.sleep(max(0.0, ends_at - time.monotonic() - 0.3))
            enqueue(database, shop.plain.options(queue="other"), [{"n": 2}])
            wait_until(lambda: left(database) == 0)


def test_a_drain_runs_what_is_promoted_after_it_has_looked_behind_limits(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_looked = threading.Event()
    claim_some, tell, promote = Claimer.claim_some, LimitedSource.tell, OwnLookout.promote

    def looked(self: Claimer) -> bool:
        any_claimed = claim_some(self)
        has_looked.set()
        return any_claimed

    def promote_later(self: OwnLookout, now: float) -> bool:
        has_looked.wait(5)
        return promote(self, now)

    def tell_late(self: LimitedSource) -> None:
        time.sleep(0.2)
        tell(self)

    monkeypatch.setattr(Claimer, "claim_some", looked)
    monkeypatch.setattr(LimitedSource, "tell", tell_late)
    monkeypatch.setattr(OwnLookout, "promote", promote_later)
    enqueue(database, shop.pair.options(delay=0.1), [{"n": 1}])
    time.sleep(0.2)
    assert jobs.worker().drain() == 1


def test_a_late_commit_is_found_although_all_slots_were_busy_when_the_look_for_it_was_planned(
    database: Engine,
) -> None:
    """The slots become free before that look is due, so nothing else wakes the claim loop."""
    with jobs.worker({"default": 2}, clock=False) as worker, Session(database) as late:
        shop.plain.enqueue(late, n=0)
        late.flush()
        assert worker._parts is not None
        floors, began = worker._parts.claimer._plain._floors, time.monotonic()
        while time.monotonic() < began + 3 or floors.sweep_at("default") < time.monotonic() + 0.6:
            enqueue(database, shop.plain, [{"n": n} for n in range(4)])
            time.sleep(0.01)
        wait_until(lambda: left(database) == 0)
        shop.plain.enqueue_many(late, [{"n": n, "seconds": 0.1} for n in (1, 2)])
        late.commit()
        wait_until(lambda: left(database) == 0)


def test_a_run_that_has_lost_its_lease_before_the_code_of_its_task_began_does_not_begin_it(database: Engine) -> None:
    """It is in a middleware, or waits for a connection. Somebody else may run the job by then."""
    own: Jobs[Any] = Jobs(registry())
    is_waiting, may_go_on = threading.Event(), threading.Event()
    begun: list[int] = []

    @own.middleware
    @contextmanager
    def waits(run: RunContext) -> Generator[None]:
        if run.attempt == 1:
            is_waiting.set()
            may_go_on.wait(10)
        yield

    @own.task(name="work", limits=ConcurrencyLimit(1))
    def work(run: RunContext) -> None:
        begun.append(run.attempt)
        for _ in range(100):
            time.sleep(0.01)

    own.bind(database)
    with own.worker(heartbeat=0.2, lease=1.5, clock=False):
        enqueue(database, work, [{}])
        is_waiting.wait(10)
        with database.begin() as connection:
            connection.execute(text("DELETE FROM sqla_processes"))
        wait_until(lambda: begun == [2])
        may_go_on.set()
        wait_until(lambda: left(database) == 0)
        time.sleep(0.3)
    assert begun == [2]


def test_a_run_in_a_limited_queue_that_has_lost_its_lease_is_interrupted(database: Engine) -> None:
    own: Jobs[Any] = Jobs(registry())
    begun, ended = threading.Event(), list[float]()

    @own.task(name="work", max_attempts=1)
    def work(seconds: float) -> None:
        deadline = time.monotonic() + seconds
        begun.set()
        try:
            while time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            ended.append(seconds)

    own.bind(database)
    with Session(database) as session:
        own.set_limit(session, queue="default", running=1)
        session.commit()
    with own.worker(heartbeat=0.2, lease=1.5, clock=False):
        enqueue(database, work, [{"seconds": 60}])
        assert begun.wait(20)
        with database.begin() as connection:
            connection.execute(text("DELETE FROM sqla_processes"))
        wait_until(lambda: ended == [60])
