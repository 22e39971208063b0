"""What follows the end of a job behind a limit: its place goes on at once, to whoever waited for it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from psycopg import sql
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqla_jobs.database.driver import driver
from sqla_jobs.database.subscribers import LIMITS
from sqla_jobs.queries import Claimed
from tests import limited_shop as shop
from tests.counting import states
from tests.helpers import wait_until
from tests.limited_shop import jobs
from tests.limits.attempts import enqueue, left
from tests.limits.claims import Claims, as_worker


@pytest.fixture
def claims(database: Engine) -> Iterator[Claims]:
    with as_worker(database, jobs) as claims:
        yield claims


def account(job: Claimed) -> int:
    return int(job.gates[0].rpartition("=")[2])


def test_a_key_that_was_full_goes_on_before_the_others(database: Engine, claims: Claims) -> None:
    enqueue(database, shop.keyed, [{"account": n} for n in (1, 2, 2, 1)])
    running = {account(job): job for job in claims.limited()}
    enqueue(database, shop.keyed, [{"account": 0}])
    claims.end(running[2])
    (next_one,) = claims.limited(1, hints={running[2].gates: 1})
    assert account(next_one) == 2


def test_a_key_that_had_room_takes_its_turn(database: Engine, claims: Claims) -> None:
    """Else the few keys that run would go on for ever before all the others."""
    enqueue(database, shop.roomy, [{"account": n} for n in (2, 2, 2)])
    first, *_ = claims.limited(2)
    enqueue(database, shop.roomy, [{"account": 1}])
    claims.end(first)
    (next_one,) = claims.limited(1, hints={first.gates: 1})
    assert account(next_one) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("task", "is_full"), [(shop.keyed, True), (shop.roomy, False)])
def test_others_are_told_of_a_place_only_where_somebody_waited_for_it(
    database: Engine, claims: Claims, task: object, is_full: bool
) -> None:
    enqueue(database, task, [{"account": 1} for _ in range(3)])
    job, *_ = claims.limited(2)
    claims.end(job)
    with database.connect() as listening:
        raw = driver(listening)
        raw.execute(sql.SQL("LISTEN {}").format(sql.Identifier(jobs.models.channel)))
        raw.commit()
        with claims.engine.connect() as connection:
            claims.queries.tell_others(connection, jobs.models.channel, dict.fromkeys(job.gates, 1))
        told = [notify.payload for notify in raw.notifies(timeout=1.0)]
        assert (LIMITS in told) == is_full  # of the enqueue they are told, too


def test_a_limited_job_with_a_short_delay_does_not_wait_for_a_poll(database: Engine) -> None:
    with jobs.worker(), Session(database) as session:
        shop.pair.options(delay=0.2).enqueue(session, n=1)
        session.commit()
        wait_until(lambda: left(database) == 0, timeout=10)


def test_a_job_that_only_an_operator_limits_does_not_wait_for_a_poll(database: Engine) -> None:
    with Session(database) as session:
        jobs.set_limit(session, shop.plain, running=1)
        session.commit()
        with jobs.worker():
            began = time.monotonic()
            for n in range(4):
                shop.plain.enqueue(session, n=n)
                session.commit()
                wait_until(lambda: left(database) == 0)
            assert time.monotonic() - began < 10, "there is a look every 5 s"


def test_a_worker_that_stops_hands_over_what_ends_meanwhile(database: Engine) -> None:
    enqueue(database, shop.busy, [{"seconds": 1.0}, {"seconds": 0.0}])
    stopping = jobs.worker()
    stopping.start()
    wait_until(lambda: states(database)["running"] == 1)
    with jobs.worker():
        stopping.stop()
        wait_until(lambda: left(database) == 0, timeout=15)
