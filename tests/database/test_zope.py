"""Each call that writes is seen by zope.sqlalchemy, which rolls transactions back in which it has seen no write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session, sessionmaker
from transaction import TransactionManager
from zope.sqlalchemy import register

from sqla_jobs import Unique
from tests import shop
from tests.shop import jobs

ONCE = Unique()
REPLACING = Unique(on_conflict="replace", max_delay=None)


def job_of(session: Session, task: str) -> Any:
    return session.scalars(select(jobs.Job).where(jobs.Job.task == task)).one()


WRITES: dict[str, Callable[[Session], object]] = {
    "enqueue": lambda session: shop.write.enqueue(session, n=1),
    "unique": lambda session: shop.write.options(unique=ONCE).enqueue(session, n=1),
    "replace": lambda session: shop.mark.options(unique_key="there", unique=REPLACING).enqueue(session, n=1),
    "many": lambda session: shop.write.enqueue_many(session, [{"n": 1}]),
    "cancel": lambda session: jobs.cancel(session, job_of(session, "mark")),
    "retry": lambda session: jobs.retry(session, job_of(session, "give_up")),
    "pause": lambda session: jobs.pause(session, "mail"),
    "resume": lambda session: jobs.resume(session, "slow"),
    "set_limit": lambda session: jobs.set_limit(session, shop.mark, running=1),
    "clear_limit": lambda session: jobs.clear_limit(session, shop.write),
    "delete": lambda session: jobs.delete(session, where=jobs.select(ended_before=timedelta(seconds=0))),
}


@pytest.fixture
def filled(database: Engine) -> Engine:
    """With something for each call to change."""
    with Session(database) as session:
        shop.mark.options(unique_key="there").enqueue(session, n=5)
        failed = shop.give_up.enqueue(session, n=6)
        failed.state, failed.finished_at = "failed", func.now()  # type: ignore[assignment]
        jobs.pause(session, "slow")
        jobs.set_limit(session, shop.write, running=1)
        session.commit()
    return database


def stored(engine: Engine) -> list[str]:
    """All that the calls may change, as others see it."""
    with engine.connect() as connection:
        models = (jobs.Job, jobs.Queue, jobs.Limit)
        return [str(row) for model in models for row in connection.execute(select(model.__table__))]


CASES = [*(("engine", name) for name in WRITES), ("connection", "retry"), ("two phases", "retry")]
"""How the session is bound, and a call. What is bound makes no difference between the calls."""


@pytest.fixture
def manager(request: pytest.FixtureRequest, filled: Engine) -> Iterator[tuple[Any, Session]]:
    """A manager of transactions, and a session that commits with it."""
    manager: Any = TransactionManager(explicit=True)
    with ExitStack() as stack:
        bind = stack.enter_context(filled.connect()) if request.param == "connection" else filled
        factory = sessionmaker(bind, twophase=request.param == "two phases")
        register(factory, transaction_manager=manager)
        yield manager, stack.enter_context(factory())


@pytest.mark.parametrize(("manager", "name"), CASES, indirect=["manager"])
def test_what_a_call_writes_is_committed_or_rolled_back_with_the_transaction(
    manager: tuple[Any, Session], filled: Engine, name: str
) -> None:
    (transactions, session), before = manager, stored(filled)
    transactions.begin()
    WRITES[name](session)
    transactions.abort()
    assert stored(filled) == before
    transactions.begin()
    WRITES[name](session)
    transactions.commit()
    assert stored(filled) != before
