"""Promises of README.md that programs of their own have to show; `pytest -m promise` runs these and others."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.orm import Session

from tests import shop
from tests.conftest import ROOT, StartWorker
from tests.counting import effects, states
from tests.helpers import wait_until

pytestmark = pytest.mark.slow
ENQUEUES = """
import os, signal
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from tests import shop

with Session(create_engine({url!r})) as session:
    session.add(shop.Effect(n={n}, kind="enqueued"))
    shop.write.enqueue(session, n={n})
    session.flush()
    {then}
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.polls
@pytest.mark.promise("Enqueueing is part of your transaction")
def test_a_program_that_is_killed_leaves_the_job_that_it_has_committed_and_no_other(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    """The message after a commit may die with the program, so the worker polls."""
    start_worker(database_url, "--poll", "0.5")
    for n, then in enumerate(["pass", "session.commit()", "session.rollback()"]):
        program = ENQUEUES.format(url=database_url, n=n, then=then)
        assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, timeout=60).returncode == -9
    wait_until(lambda: states(database) == {"succeeded": 1})
    assert effects(database, "enqueued") == effects(database, "transactional") == {1: 1}


@pytest.mark.promise("The database's clock decides")
def test_a_worker_whose_host_is_a_year_behind_runs_what_is_due_by_the_servers_clock(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    """The server's clock is put forward, as far as unqualified names are concerned."""
    with database.begin() as connection:
        connection.execute(text("CREATE SCHEMA ahead"))
        for name in ("clock_timestamp", "statement_timestamp"):
            body = f"SELECT pg_catalog.{name}() + interval '1 year'"
            connection.execute(text(f"CREATE FUNCTION ahead.{name}() RETURNS timestamptz LANGUAGE sql AS $${body}$$"))
    url = make_url(database_url).update_query_dict({"options": "-csearch_path=ahead,pg_catalog,public"})
    start_worker(url.render_as_string(hide_password=False))
    engine, now = create_engine(url), datetime.now(UTC)
    with Session(engine) as session:
        shop.write.options(run_at=now + timedelta(days=364)).enqueue(session, n=1)
        shop.write.options(run_at=now + timedelta(days=366)).enqueue(session, n=2)
        shop.write.options(delay=3600).enqueue(session, n=3)
        session.commit()
    engine.dispose()
    wait_until(lambda: states(database)["succeeded"])
    assert states(database) == {"succeeded": 1, "scheduled": 2}
    assert effects(database, "transactional") == {1: 1}
