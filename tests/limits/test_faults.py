"""Workers with limits when something goes wrong: rows that cannot be changed, answers that are late, odd settings."""

from __future__ import annotations

import sys

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqla_jobs.queries import Queries
from tests import limited_shop as shop
from tests.conftest import ROOT
from tests.counting import states
from tests.helpers import refuse, run_to_end, wait_until
from tests.limited_shop import jobs
from tests.limits.attempts import enqueue, left, most_at_once

pytestmark = pytest.mark.slow

QUERIES = Queries(jobs._models)
INSERT = "INSERT INTO sqla_limits (gate, running, tasks) VALUES ('#pair', 2, '{pair}')"


def insert_plainly(engine: Engine, task: str, count: int) -> None:
    """By SQL: without gates."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO sqla_jobs (task, args, state) "
                "SELECT :task, jsonb_build_object('n', n, 'seconds', 0.02), 'queued' FROM generate_series(1, :count) n"
            ),
            {"task": task, "count": count},
        )


def test_a_row_that_cannot_be_given_its_gates_holds_up_no_other(database: Engine) -> None:
    insert_plainly(database, "pair", 6)
    with Session(database) as session:
        refuse(session, "NEW.args->>'n' = '1'")
    with jobs.worker({"default": 4}, clock=False):
        wait_until(lambda: states(database) == {"succeeded": 5, "queued": 1})
    assert most_at_once(database, "pair") == {None: 2}


def test_a_drain_whose_limit_another_transaction_inserts_ends_and_says_what_kept_it(
    database: Engine, database_url: str
) -> None:
    enqueue(database, shop.pair, [{"n": 1}])
    command = [sys.executable, "-m", "sqla_jobs.worker", "tests.limited_shop:jobs", "--database-url", database_url]
    with database.connect() as other:
        other.execute(text(INSERT))
        ended = run_to_end([*command, "--drain", "--heartbeat", "1", "--lease", "3"], ROOT)
    assert ended.returncode == 1, ended.stderr
    assert "limit pair is not stored yet" in ended.stderr
    assert "Error: not drained: no job of pair may start" in ended.stderr
    assert states(database) == {"queued": 1}
    assert jobs.worker().drain() == 1


def test_what_was_claimed_is_not_given_back_while_the_answer_is_under_way(database: Engine) -> None:
    """The claim is committed, and the worker still asks when the job was first started."""
    enqueue(database, shop.pair, [{"n": 1, "seconds": 0.5}])
    with database.begin() as connection:
        connection.execute(text("UPDATE sqla_jobs SET started_at = now()"))
    with Session(database) as session, jobs.worker({"default": 1}, heartbeat=0.2, lease=30, clock=False):
        session.execute(text("LOCK TABLE sqla_runs IN ACCESS EXCLUSIVE MODE"))
        wait_until(lambda: states(database)["running"] == 1)
        old = text("SELECT clock_timestamp() > started_at + interval '1.2 s' FROM sqla_jobs")
        wait_until(lambda: session.scalar(old))
        session.rollback()
        wait_until(lambda: left(database) == 0)
    with database.connect() as connection:
        assert connection.scalar(text("SELECT last_value FROM sqla_runs_id_seq")) == 1, "it was claimed once"


def test_a_process_that_was_taken_for_dead_meanwhile_does_not_begin_what_it_claimed(
    database: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else may run it by then, and a gate has room for one."""
    enqueue(database, shop.keyed, [{"account": 1, "seconds": 0.1}])
    with database.begin() as connection:
        connection.execute(text("UPDATE sqla_jobs SET started_at = now()"))
    with Session(database) as session, jobs.worker({"default": 1}, heartbeat=0.2, lease=1.5, clock=False):
        session.execute(text("LOCK TABLE sqla_runs IN ACCESS EXCLUSIVE MODE"))
        wait_until(lambda: states(database)["running"] == 1)
        session.execute(text("DELETE FROM sqla_processes"))
        assert QUERIES.rescue(session)
        wait_until(
            lambda: session.scalar(text("SELECT clock_timestamp() > started_at + interval '0.93 s' FROM sqla_jobs"))
        )
        session.commit()
        wait_until(lambda: left(database) == 0)
    assert "is interrupted" not in caplog.text
