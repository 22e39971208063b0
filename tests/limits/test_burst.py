"""Rates whose starts are spread: how many may be close together, and how many in the whole time."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import Jobs, RateLimit
from sqla_jobs.monitoring.limits import read_limits
from tests.helpers import wait_until
from tests.limits.attempts import left, most_in

pytestmark = pytest.mark.slow


@pytest.fixture
def spread(database: Engine) -> Jobs[Any]:
    """One whose `send` starts at most 20 times in 2 seconds, 3 of them close together: so 3 in 0.3 seconds."""

    class Base(DeclarativeBase):
        pass

    jobs = Jobs(Base, bind=database)

    @jobs.task(limits=RateLimit(20, per=2, burst=3))
    def send(n: int) -> None: ...

    @jobs.task(limits=RateLimit(20, per=60, burst=3, key="to"))
    def notify(to: int) -> None: ...

    return jobs


def enqueue(engine: Engine, task: Any, arguments: list[dict[str, int]]) -> list[Any]:
    with Session(engine, expire_on_commit=False) as session:
        added = [task.enqueue(session, **each) for each in arguments]
        session.commit()
    return added


def test_starts_are_spread_exactly(database: Engine, spread: Jobs[Any]) -> None:
    enqueue(database, spread.tasks["send"], [{"n": n} for n in range(26)])
    with spread.worker({"default": 4}, clock=False), spread.worker({"default": 4}, clock=False):
        wait_until(lambda: left(database) == 0)
    assert most_in(database, 0.3, "send") == 3
    assert most_in(database, 2.0, "send") <= 20, "what 3 in 0.3 seconds would exceed"


def test_each_key_is_spread_also_where_an_operator_has_set_its_rate(database: Engine, spread: Jobs[Any]) -> None:
    notify = spread.tasks["notify"]
    enqueue(database, notify, [{"to": n % 2} for n in range(10)])
    with Session(database) as session:
        spread.set_limit(session, notify, key=1, rate=30, per=60)
        session.commit()
        assert spread.worker().drain() == 6
        (one,) = [one for one in read_limits(session, spread) if one.gate == "%notify="]
        assert (one.in_effect, one.by_code) == ("20 in 60 s, 3 close together",) * 2


def test_what_is_spent_is_spread_too(spread: Jobs[Any], database: Engine) -> None:
    spread.worker().drain()  # it stores the limit
    assert not spread.spend("notify", 4, key=1)
    assert spread.spend("notify", 3, key=1)
    assert not spread.spend("notify", key=1)
