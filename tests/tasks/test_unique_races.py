"""What can happen between two statements of enqueues with unique keys."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, func, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import JobExists, Jobs, Unique
from tests.helpers import wait_until, waiting_for_locks

pytestmark = pytest.mark.slow
LEASE = "current_run_id = 1, process_id = '00000000-0000-0000-0000-000000000001'"


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)


@jobs.task(unique=Unique("key"))
def note(key: int, token: str) -> None: ...


POLICIES: dict[str, Unique] = {
    "return": Unique("key"),
    "raise": Unique("key", on_conflict="raise"),
    "replace": Unique("key", on_conflict="replace", max_delay=60),
}


@pytest.fixture
def racing(database_url: str) -> Iterator[Engine]:
    """An engine with a connection for each racer."""
    engine = create_engine(database_url, pool_size=20)
    Base.metadata.create_all(engine)
    jobs.bind(engine)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("name", ["replace"])
def test_many_at_once_take_their_keys_in_one_order(racing: Engine, name: str) -> None:
    """So calls with the same keys in different orders wait for each other, and not in a circle."""
    task = note.options(unique=POLICIES[name])

    def enqueue(seed: int) -> None:
        items = [{"key": key, "token": str(seed)} for key in range(300)]
        random.Random(seed).shuffle(items)
        with Session(racing) as session:
            task.enqueue_many(session, items)
            session.commit()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(enqueue, range(32))) == [None] * 32
    with Session(racing) as session:
        assert session.scalar(select(func.count()).select_from(jobs.Job)) == 300
        deadlocks = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        assert session.scalar(deadlocks) == 0


class Interlude:
    """Calls a function once, after the statement of a session that is the first to contain some words."""

    def __init__(self, session: Session, words: str, call: Any) -> None:
        self.words, self.call = words, call
        event.listen(session.connection(), "after_cursor_execute", self._after)

    def _after(self, connection: Any, cursor: Any, statement: str, *_: object) -> None:
        if self.call is not None and self.words in statement:
            call, self.call = self.call, None
            call()


@pytest.mark.parametrize("name", ["return", "raise", "replace"])
def test_a_job_that_ends_between_two_statements_does_not_reverse_the_order_of_keys(racing: Engine, name: str) -> None:
    """Another session has taken its key, and waits for a key that this one has taken."""
    task = note.options(unique=POLICIES[name])
    with Session(racing) as first:
        task.enqueue(first, key=1, token="old")
        first.commit()

    def enqueue_both(token: str) -> None:
        with Session(racing) as other, suppress(JobExists):
            task.enqueue_many(other, [{"key": 1, "token": token}, {"key": 2, "token": token}])
            other.commit()

    def end_it_and_wait_for_the_other() -> None:
        with racing.begin() as connection:
            connection.execute(text("SET LOCAL lock_timeout = '2s'"))
            with suppress(OperationalError):
                connection.execute(text("UPDATE sqla_jobs SET state = 'succeeded' WHERE args ->> 'token' = 'old'"))
        others.append(pool.submit(enqueue_both, "other"))
        wait_until(lambda: bool(others[0].done() or waiting_for_locks(racing)))

    others: list[Any] = []
    with ThreadPoolExecutor(1) as pool, Session(racing) as session:
        Interlude(session, "INSERT INTO sqla_jobs", end_it_and_wait_for_the_other)
        with suppress(JobExists):
            task.enqueue_many(session, [{"key": 1, "token": "mine"}, {"key": 2, "token": "mine"}])
        session.commit()
        others[0].result()


def test_raise_hands_over_the_job_that_ends_meanwhile(racing: Engine) -> None:
    task = note.options(unique=POLICIES["raise"])
    with Session(racing) as session:
        job_id = task.enqueue(session, key=1, token="old").id
        session.execute(text(f"UPDATE sqla_jobs SET state = 'running', {LEASE}"))
        session.commit()

    def end_it() -> None:
        with racing.begin() as connection:
            connection.execute(
                text("UPDATE sqla_jobs SET state = 'succeeded', current_run_id = NULL, process_id = NULL")
            )

    with Session(racing) as session:
        Interlude(session, "sqla_jobs.unique_key = ANY", end_it)
        with pytest.raises(JobExists) as caught:
            task.enqueue_many(session, [{"key": 1, "token": "a"}, {"key": 2, "token": "a"}])
        assert caught.value.job.id == job_id
        assert session.scalar(select(func.count()).select_from(jobs.Job)) == 1


def test_raise_goes_on_if_the_job_is_deleted_meanwhile(racing: Engine) -> None:
    task = note.options(unique=POLICIES["raise"])
    with Session(racing) as session:
        task.enqueue(session, key=1, token="old")
        session.execute(text(f"UPDATE sqla_jobs SET state = 'running', {LEASE}"))
        session.commit()

    def delete_it() -> None:
        with racing.begin() as connection:
            connection.execute(text("DELETE FROM sqla_jobs"))

    with Session(racing) as session:
        Interlude(session, "sqla_jobs.unique_key = ANY", delete_it)
        assert task.enqueue_many(session, [{"key": 1, "token": "a"}, {"key": 2, "token": "a"}]).inserted == 2


def test_an_enqueue_goes_on_if_the_job_that_it_would_return_is_deleted_meanwhile(racing: Engine) -> None:
    with Session(racing) as session:
        note.enqueue(session, key=1, token="old")
        session.execute(text(f"UPDATE sqla_jobs SET state = 'running', {LEASE}"))
        session.commit()

    def delete_it() -> None:
        with racing.begin() as connection:
            connection.execute(text("DELETE FROM sqla_jobs"))

    with Session(racing) as session:
        Interlude(session, "sqla_jobs.unique_key = ANY", delete_it)
        assert note.enqueue(session, key=1, token="new").is_new
