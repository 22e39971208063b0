"""What operators and deploys do to limits, one after the other: nothing is left that no job can pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session
from sqlalchemy.orm import registry as mapper_registry

from sqla_jobs import ConcurrencyLimit, Jobs
from tests import limited_shop as shop
from tests.helpers import wait_until
from tests.limited_shop import jobs
from tests.limits.attempts import enqueue, left


def of_version(engine: Engine, declare: Callable[[Jobs[Any]], Any]) -> Jobs[Any]:
    """The jobs of another version of the code, over the same tables."""
    version = Jobs(mapper_registry())
    declare(version)
    version.bind(engine)
    return version


def without_limits(version: Jobs[Any]) -> None:
    @version.task
    def acc(account: int) -> None: ...


def test_a_limit_of_each_key_that_code_drops_goes_with_what_an_operator_had_set(database: Engine) -> None:
    def limited(version: Jobs[Any]) -> None:
        @version.task(limits=ConcurrencyLimit(1, key="account"))
        def acc(account: int) -> None: ...

    old = of_version(database, limited)
    assert old.worker().drain() == 0
    with Session(database) as session:
        old.set_limit(session, "acc", running=4)
        session.commit()
    new = of_version(database, without_limits)
    with Session(database) as session:
        new.tasks["acc"].enqueue(session, account=1)
        session.commit()
    assert new.worker().drain() == 1


def test_in_each_of_two_limited_queues_jobs_with_and_without_limits_take_turns(database: Engine) -> None:
    with Session(database) as session:
        for queue in ("first", "second"):
            jobs.set_limit(session, queue=queue, running=1)
        session.commit()
    for queue, many, one in (("first", shop.plain, shop.pair), ("second", shop.pair, shop.plain)):
        enqueue(database, many.options(queue=queue), ({"n": n, "seconds": 0.02} for n in range(200)))
        enqueue(database, one.options(queue=queue, priority=10), [{"n": -1}])
    with jobs.worker({"first": 1, "second": 1}, clock=False):
        wait_until(lambda: _left_of(database, priority=10) == 0)
        assert left(database) > 200


def _left_of(engine: Engine, priority: int) -> int:
    with Session(engine) as session:
        waiting = select(jobs.Job.id).where(jobs.Job.priority == priority, jobs.Job.finished_at.is_(None))
        return len(session.scalars(waiting).all())
