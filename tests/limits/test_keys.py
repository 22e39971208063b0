"""Keys of limits that are odd: made by functions that misbehave, spelled in two ways, or written by plain SQL."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import count
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import ConcurrencyLimit, Jobs, RateLimit
from tests.counting import states
from tests.helpers import wait_until
from tests.limits.attempts import left

pytestmark = pytest.mark.slow


def bound(database: Engine) -> Jobs[Any]:
    class Base(DeclarativeBase):
        pass

    return Jobs(Base, bind=database)


class Application:
    """One whose `send` is limited by key."""

    def __init__(self, database: Engine, key: Any) -> None:
        self.jobs = bound(database)

        @self.jobs.task(limits=ConcurrencyLimit(1, key=key))
        def send(n: int) -> None: ...

        self.send = send


def insert(engine: Engine, task: str, args: str, gates: str | None = None) -> None:
    """By SQL, as another language does."""
    statement = text("INSERT INTO sqla_jobs (task, args, gates, state) VALUES (:task, :args, :gates, 'queued')")
    with engine.begin() as connection:
        connection.execute(statement, {"task": task, "args": args, "gates": gates})


def test_a_key_function_that_exits_holds_up_no_other_job(database: Engine) -> None:
    """It runs in the worker for jobs that have no gates yet. Its key is null then, as after an error."""

    def exits(arguments: Mapping[str, Any]) -> int:
        if arguments["n"] == 1:
            sys.exit("as asked")
        return 1

    app = Application(database, exits)
    insert(database, "send", '{"n": 1}')
    with app.jobs.worker({"default": 2}, clock=False), Session(database) as session:
        wait_until(lambda: left(database) == 0)
        app.send.enqueue(session, n=2)
        session.commit()
        wait_until(lambda: states(database) == {"succeeded": 2})


def test_a_key_is_made_once_also_where_it_would_be_another_one_each_time(database: Engine) -> None:
    """A worker adds the gate that the first job lacks, and gives the job back that one time."""
    keys = count()

    def next_key(arguments: Mapping[str, Any]) -> int:
        return next(keys)

    app = Application(database, next_key)
    insert(database, "send", '{"n": 1}', "{#renamed}")
    with Session(database) as session:
        app.send.enqueue(session, n=2)
        session.commit()
        with app.jobs.worker({"default": 2}, clock=False):
            wait_until(lambda: left(database) == 0)
        assert sorted(job.gates or [] for job in session.scalars(select(app.jobs.Job))) == [
            ["#send=0"],
            ["#send=1", "#renamed"],
        ]
        assert session.scalar(text("SELECT last_value FROM sqla_runs_id_seq")) == 3


@pytest.mark.parametrize("is_known_late", [False, True])
def test_a_key_that_one_task_hides_is_one_key_for_all_that_share_the_limit(
    database: Engine, is_known_late: bool
) -> None:
    jobs = bound(database)
    limit = RateLimit(5, per=60, key="to", name="smtp")

    @jobs.task(limits=limit)
    def news(to: str) -> None: ...

    def enqueue_some(task: Any) -> None:
        with Session(database) as session:
            task.enqueue_many(session, ({"to": "ada@example.com"} for _ in range(10)))
            session.commit()

    if is_known_late:  # such as by a web server that does not import all tasks
        enqueue_some(news)

    @jobs.task(limits=limit, sensitive=["to"])
    def reset_password(to: str) -> None: ...

    if not is_known_late:
        enqueue_some(news)
    enqueue_some(reset_password)
    assert jobs.worker().drain() == 5


@pytest.mark.parametrize("key", [1, 1.0])
def test_whole_numbers_are_one_key_however_they_are_written(database: Engine, key: float) -> None:
    jobs = bound(database)

    @jobs.task(limits=ConcurrencyLimit(1, key=["price", "of"]))
    def sell(price: float, of: int = 1) -> None: ...

    with Session(database) as session:
        sell.enqueue(session, price=1.0)
        insert(database, "sell", '{"price": 1}')
        insert(database, "sell", '{"price": 1.0, "of": 1.00}')
        sell.enqueue(session, price=1.5)
        jobs.set_limit(session, sell, key=[key, 1], running=0)
        session.commit()
    assert jobs.worker().drain() == 1
    with database.connect() as connection:
        gates = connection.scalars(text("SELECT gates FROM sqla_jobs WHERE state = 'queued'")).all()
    assert gates == [["#sell=[1,1]"]] * 3
