"""Workers behind a real PgBouncer in transaction mode; nothing may be left in the sessions that it shares."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from tests import shop
from tests.conftest import StartWorker
from tests.counting import attempts_and_runs, effects, enqueue_both, runs, states
from tests.helpers import wait_until
from tests.pooler import pgbouncer
from tests.programs import PGBOUNCER
from tests.shop import jobs

pytestmark = [pytest.mark.slow, pytest.mark.needs(PGBOUNCER)]

POLLS = ("--poll", "0.5")
"""Behind a pooler nobody listens."""
POOLERS = ("application_name is", "client_encoding is", "DateStyle is", "TimeZone is", "standard_conforming_strings is")
"""What PgBouncer itself keeps for each of its clients."""


@pytest.fixture
def pooled(database: Engine) -> Iterator[Engine]:
    """The application's engine, which prepares statements, through a PgBouncer of its own."""
    with pgbouncer(database.url) as engine:
        jobs.bind(engine)
        yield engine


LEFT = (
    "SELECT 'prepared: ' || statement FROM pg_prepared_statements WHERE from_sql",
    "SELECT 'listens to ' || pg_listening_channels()",
    "SELECT name || ' is ' || setting FROM pg_settings WHERE source = 'session'",
    "SELECT 'advisory lock ' || objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
)


def left_in_sessions(engine: Engine) -> set[str]:
    """What somebody else who gets one of the shared server sessions would find there."""
    sessions = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
    with engine.connect() as connection:
        number = connection.scalar(sessions) or 0
    with ExitStack() as stack:
        pids, found = set[int](), set[str]()
        for _ in range(number):  # a transaction in each of them at once
            connection = stack.enter_context(engine.connect())
            pids.add(connection.scalar(text("SELECT pg_backend_pid()")) or 0)
            for statement in LEFT:
                found.update(map(str, connection.scalars(text(statement))))
        assert len(pids) == number > 1
        assert connection.scalar(sessions) == number
    return {what for what in found if not what.startswith(POOLERS)}


def test_workers_behind_a_pooler_lose_nothing_and_leave_nothing(
    pooled: Engine, start_worker: StartWorker, tmp_path: Path
) -> None:
    url = pooled.url.render_as_string(hide_password=False)
    enqueue_both(pooled, 40, 0.1, first=4.0)
    victim = start_worker(url, "--concurrency", "4", *POLLS)
    wait_until(lambda: states(pooled)["running"] > 0 and states(pooled)["succeeded"] > 20)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    worker = start_worker(url, "--concurrency", "8", *POLLS)
    wait_until(lambda: states(pooled) == {"succeeded": 80}, timeout=40)
    assert effects(pooled, "transactional") == dict.fromkeys(range(40), 1)
    assert set(effects(pooled, "plain")) == set(range(40))
    assert runs(pooled, "lost") > 0
    attempts, rows = attempts_and_runs(pooled)
    assert attempts == rows

    with Session(pooled) as session:
        one = shop.endless.enqueue(session, n=99)
        session.commit()
        wait_until(lambda: states(pooled)["running"] == 1)
        jobs.cancel(session, one)
        session.commit()
        wait_until(lambda: states(pooled) == {"succeeded": 80, "cancelled": 1})
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    assert left_in_sessions(pooled) == set()
    assert effects(pooled, "transactional") == dict.fromkeys(range(40), 1)
    assert "ERROR" not in "".join(path.read_text() for path in tmp_path.glob("worker-*.log"))


def test_statements_are_prepared_through_the_pooler(pooled: Engine) -> None:
    """By the application's sessions, which tasks use; what is prepared belongs to the pooler's client."""
    with Session(pooled) as session:
        shop.write.enqueue_many(session, ({"n": n} for n in range(50)))
        session.commit()
    assert jobs.worker(concurrency=4).drain() == 50
    assert effects(pooled, "transactional") == dict.fromkeys(range(50), 1)
    with pooled.connect() as connection:
        assert connection.scalar(text("SELECT count(*) > 0 FROM pg_prepared_statements"))
    assert left_in_sessions(pooled) == set()
