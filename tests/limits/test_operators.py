"""What operators and deploys do to limits, one after the other: nothing is left that no job can pass."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import Engine, event, select, text
from sqlalchemy.orm import Session
from sqlalchemy.orm import registry as mapper_registry

from sqla_jobs import ArgumentsError, ConcurrencyLimit, DeclarationError, Jobs, RateLimit, Unique
from sqla_jobs.testing import drain
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


def test_a_queue_whose_limit_was_cleared_is_not_limited(database: Engine) -> None:
    with Session(database) as session:
        jobs.set_limit(session, queue="default", running=5)
        jobs.clear_limit(session, queue="default")
        session.commit()
    enqueue(database, shop.pair, [{"n": 1}])
    assert jobs.worker().drain() == 1
    with Session(database) as session:
        shop.plain.enqueue(session, n=1)
        assert drain(jobs, session, limits=True) == 1


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


def test_a_worker_of_a_full_queue_rests_and_drains(database: Engine) -> None:
    with Session(database) as session:
        jobs.set_limit(session, queue="default", running=0)
        session.commit()
    enqueue(database, shop.pair, [{"n": 1}])
    assert jobs.worker().drain() == 0


def test_in_each_of_two_limited_queues_jobs_with_and_without_limits_take_turns(database: Engine) -> None:
    with Session(database) as session:
        for queue in ("first", "second"):
            jobs.set_limit(session, queue=queue, running=1)
        session.commit()
    for queue, many, one in (("first", shop.plain, shop.pair), ("second", shop.pair, shop.plain)):
        enqueue(database, many.options(queue=queue), ({"n": n, "seconds": 0.02} for n in range(200)))
        enqueue(database, one.options(queue=queue, priority=10), [{"n": -1}])
    with jobs.worker({"first": 1, "second": 1}):
        wait_until(lambda: _left_of(database, priority=10) == 0)
        assert left(database) > 200


def _left_of(engine: Engine, priority: int) -> int:
    with Session(engine) as session:
        waiting = select(jobs.Job.id).where(jobs.Job.priority == priority, jobs.Job.finished_at.is_(None))
        return len(session.scalars(waiting).all())


def test_the_end_of_a_plain_job_lets_the_next_one_of_a_limited_queue_start(database: Engine) -> None:
    with Session(database) as session:
        jobs.set_limit(session, queue="default", running=1)
        session.commit()
    with jobs.worker({"default": 4}):
        enqueue(database, shop.plain, ({"n": n} for n in range(20)))
        wait_until(lambda: left(database) == 0, timeout=10)


@pytest.mark.slow
def test_a_longer_time_of_a_rate_counts_what_started_in_it_and_not_all_that_ever_did(database: Engine) -> None:
    enqueue(database, shop.rated, ({"n": n} for n in range(20)))
    with jobs.worker({"default": 4}):
        wait_until(lambda: left(database) == 0)
    with Session(database) as session:
        jobs.set_limit(session, shop.rated, rate=18, per=3600)
        session.commit()
    enqueue(database, shop.rated, [{"n": 1}])
    with jobs.worker({"default": 4}):
        wait_until(lambda: left(database) == 0)  # what started before is logged no more, but for the last of it


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
        assert new.prune(session, older_than=0) == 1


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


@pytest.mark.parametrize(
    ("which", "numbers", "told"),
    [
        ("narrow", {"rate": 1, "per": 1}, "no task declares a rate named 'narrow'"),
        ("keyed", {"key": uuid.uuid4(), "running": 1}, "key= must be JSON"),
    ],
)
def test_a_limit_that_would_limit_nothing_is_refused(
    session: Session, which: str, numbers: dict[str, Any], told: str
) -> None:
    with pytest.raises(ArgumentsError, match=told):
        jobs.set_limit(session, which, **numbers)


@pytest.mark.parametrize(
    ("which", "key", "told"), [("paced", {}, "goes by key: say key="), ("pair", {"key": 1}, "not declared with key=")]
)
def test_a_rate_that_nothing_could_share_is_not_spent_from(which: str, key: dict[str, Any], told: str) -> None:
    with pytest.raises(ArgumentsError, match=told):
        jobs.spend(which, **key)


def test_a_key_that_is_no_key_is_refused_where_it_is_declared() -> None:
    key: Any = 5
    with pytest.raises(DeclarationError, match="an argument's name, a list of names or a function"):
        jobs.task(limits=RateLimit(1, per=1, key=key))(_nothing)


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
            deploy.enter_context(new.worker())

        event.listen(session, "before_flush", begin, once=True)
        old.clear_limit(session, "acc")
        session.commit()
        with Session(database) as other:
            wait_until(lambda: other.scalars(select(old.Limit.running)).all() == [7])


def test_starts_of_a_day_ago_are_forgotten(database: Engine) -> None:
    with database.begin() as connection:
        old = "now() - interval '2 days'"
        connection.execute(text(f"INSERT INTO sqla_starts VALUES ('%gone=1', {old}, 5, 5), ('%kept', {old}, 5, 5)"))
        connection.execute(text("INSERT INTO sqla_starts VALUES ('%kept', now(), 6, 1)"))
    with jobs.worker():
        wait_until(lambda: _starts(database) == [("%kept", 5), ("%kept", 6)])


def _starts(engine: Engine) -> list[tuple[str, int]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text("SELECT gate, total FROM sqla_starts ORDER BY 1, 2"))]
