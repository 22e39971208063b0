"""Other workers are told of freed places: at most every 100 ms, and only if there are any."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

import pytest
from psycopg import sql
from sqlalchemy import Engine

from sqla_jobs.database.driver import driver
from sqla_jobs.database.subscribers import LIMITS
from sqla_jobs.queries import processes
from tests import limited_shop as shop
from tests.helpers import wait_until
from tests.limited_shop import jobs
from tests.limits.attempts import enqueue, left

pytestmark = pytest.mark.slow


@contextmanager
def messages_noted(engine: Engine) -> Generator[list[str]]:
    """Yield a list that holds, after the block, what workers were told about limits in it."""
    told: list[str] = []
    with engine.connect() as connection:
        raw = driver(connection)
        raw.execute(sql.SQL("LISTEN {}").format(sql.Identifier(jobs._models.channel)))
        raw.commit()
        yield told
        told += [one.payload for one in raw.notifies(timeout=0.2) if one.payload == LIMITS]
        raw.execute("UNLISTEN *")


@pytest.mark.parametrize("others", [0, 1])
def test_a_worker_tells_others_at_most_ten_times_a_second(database: Engine, others: int) -> None:
    enqueue(database, shop.pair, ({"n": n, "seconds": 0.01} for n in range(100)))
    for _ in range(others):
        with database.begin() as connection:
            processes.register(connection, jobs._models, kind="worker", queues={}, lease=60)
    with messages_noted(database) as told:
        began = time.monotonic()
        with jobs.worker({"default": 4}, clock=False):
            wait_until(lambda: left(database) == 0)
        took = time.monotonic() - began
    assert (len(told) > 0) == (others > 0)
    assert len(told) <= 2 + took / 0.1
