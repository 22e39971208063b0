"""What operators and deploys do to limits, one after the other: nothing is left that no job can pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, select, text
from sqlalchemy.orm import Session
from sqlalchemy.orm import registry as mapper_registry

from sqla_jobs import ArgumentsError, ConcurrencyLimit, Jobs, Unique
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


@pytest.mark.slow
def test_a_limit_of_a_task_that_code_drops_stays_where_an_operator_had_set_it(database: Engine) -> None:
    def limited(version: Jobs[Any]) -> None:
        @version.task(limits=ConcurrencyLimit(1))
        def acc(account: int) -> None: ...

    old = of_version(database, limited)
    assert old.worker().drain() == 0
    with Session(database) as session:
        old.set_limit(session, "acc", running=0)
        session.commit()
    new = of_version(database, without_limits)
    enqueue(database, new.tasks["acc"], [{"account": 1}])
    assert new.worker().drain() == 0
    with Session(database) as session:
        assert new.clear_limit(session, "acc")
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


@pytest.mark.slow
def test_a_key_that_no_code_holds_any_more_spares_no_failed_job(database: Engine) -> None:
    def holding(version: Jobs[Any]) -> None:
        @version.task(limits=ConcurrencyLimit(1, key="account", ordered="hold"), max_attempts=1)
        def acc(account: int) -> None:
            raise RuntimeError("as asked")

    def plain(version: Jobs[Any]) -> None:
        @version.task
        def acc(account: int) -> None: ...

    old = of_version(database, holding)
    enqueue(database, old.tasks["acc"], [{"account": 1}])
    assert old.worker().drain() == 1
    new = of_version(database, plain)
    assert new.worker().drain() == 0
    with Session(database) as session:
        assert new.delete(session, where=new.select(ended_before=timedelta(seconds=0))).changed == 1


def test_a_limit_is_cleared_also_where_the_session_knows_its_row(session: Session) -> None:
    jobs.set_limit(session, shop.plain, running=1)
    row = session.scalars(select(jobs.Limit)).one()
    jobs.clear_limit(session, shop.plain)
    jobs.set_limit(session, shop.plain, running=3)
    assert jobs.clear_limit(session, shop.plain)
    assert session.execute(text("SELECT running, set_at FROM sqla_limits")).one() == (None, None)
    assert row.running is None


def test_another_task_that_replaces_a_job_leaves_none_of_its_gates(session: Session) -> None:
    shop.ordered.options(unique_key="k").enqueue(session, account=1, n=1)
    replaced = shop.plain.options(unique_key="k", unique=Unique(on_conflict="replace", max_delay=None))
    job = replaced.enqueue(session, n=2)
    assert (job.task, job.gates, job.ordered_by) == ("plain", None, None)


@pytest.mark.parametrize(("which", "key"), [("paced", {}), ("pair", {"key": 1})])
def test_a_rate_that_nothing_could_share_is_not_spent_from(which: str, key: dict[str, Any]) -> None:
    with pytest.raises(ArgumentsError, match="key="):
        jobs.spend(which, **key)


def _nothing(a: int) -> None: ...


def test_a_limit_that_is_cleared_while_a_worker_declares_another_number_is_the_declared_one(database: Engine) -> None:
    def of(running: int) -> Callable[[Jobs[Any]], Any]:
        def limited(version: Jobs[Any]) -> None:
            version.task(limits=ConcurrencyLimit(running), name="acc")(_nothing)

        return limited

    old, new = of_version(database, of(2)), of_version(database, of(7))
    assert old.worker().drain() == 0
    with Session(database) as session, ExitStack() as deploy:
        old.set_limit(session, "acc", running=4)
        session.commit()

        def begin(*_: object) -> None:
            deploy.enter_context(new.worker(clock=False))

        event.listen(session, "before_flush", begin, once=True)
        old.clear_limit(session, "acc")
        session.commit()
        with Session(database) as other:
            wait_until(lambda: other.scalars(select(old.Limit.running)).all() == [7])


def test_a_worker_of_a_full_queue_rests_and_drains(database: Engine) -> None:
    with Session(database) as session:
        jobs.set_limit(session, queue="default", running=0)
        session.commit()
    enqueue(database, shop.pair, [{"n": 1}])
    assert jobs.worker().drain() == 0
