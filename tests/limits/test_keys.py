"""Keys of limits that are odd: made by functions that misbehave, spelled in two ways, or written by plain SQL."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import ConcurrencyLimit, Jobs
from sqla_jobs.monitoring.examine import examine
from tests import limited_shop as shop
from tests.counting import states
from tests.helpers import wait_until
from tests.limits.attempts import enqueue, left

pytestmark = pytest.mark.slow


class Application:
    """One whose `send` is limited by key."""

    def __init__(self, database: Engine, key: Any) -> None:
        class Base(DeclarativeBase):
            pass

        self.jobs: Jobs[Any] = Jobs(Base)

        @self.jobs.task(limits=ConcurrencyLimit(1, key=key))
        def send(n: int) -> None: ...

        self.send = send
        self.jobs.bind(database)


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
    with app.jobs.worker({"default": 2}), Session(database) as session:
        wait_until(lambda: left(database) == 0)
        app.send.enqueue(session, n=2)
        session.commit()
        wait_until(lambda: states(database) == {"succeeded": 2})


def test_a_job_whose_key_is_another_one_each_time_is_set_aside_with_the_reason(
    database: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    app = Application(database, lambda arguments: time.time_ns() // 1000 if arguments["n"] == 1 else 0)
    with Session(database) as session, app.jobs.worker({"default": 2}, heartbeat=0.2):
        unsteady = app.send.enqueue(session, n=1)
        app.send.enqueue(session, n=2)
        session.commit()
        wait_until(lambda: states(database) == {"queued": 1, "succeeded": 1})
        wait_until(lambda: any("another key" in said for said in app.jobs.why(session, unsteady)))
        (told,) = [one for one in examine(session, app.jobs) if one.about == f"job {unsteady.id}"]
        assert "must make one key of the same arguments" in told.found
        claims = session.scalar(text("SELECT last_value FROM sqla_runs_id_seq"))
        assert claims <= 3, "the other one, and two rounds"
    assert "is set aside" in caplog.text


def test_a_job_that_plain_sql_has_put_behind_an_ordered_key_starts_in_its_order(database: Engine) -> None:
    """Without `ordered_by` no claim finds it."""
    insert(database, "ordered", '{"account": 1, "n": 0}', "{!ordered=1}")
    enqueue(database, shop.ordered, [{"account": 1, "n": 1}])
    with shop.jobs.worker({"default": 2}):
        wait_until(lambda: states(database) == {"succeeded": 2})
    with database.connect() as connection:
        started = connection.scalars(text("SELECT args->>'n' FROM sqla_jobs ORDER BY started_at"))
        assert [*started] == ["0", "1"]
