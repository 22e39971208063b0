"""`run.cancelling` ends blocking calls of other drivers on their servers."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import ArgumentsError, Jobs, RunContext
from sqla_jobs.testing import run_job
from tests.helpers import wait_until


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)
said: list[Any] = []
let_go = threading.Event()


def connect() -> psycopg.Connection[Any]:
    url = jobs._binding().engine.url.set(drivername="postgresql")
    return psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)


@jobs.task(max_attempts=1)
def query(run: RunContext, is_in_c: bool) -> None:
    """The same query as another driver might send it: in C code, where no interrupt arrives, or waiting in Python."""
    with connect() as connection, run.cancelling(connection):
        if is_in_c:
            connection.pgconn.exec_(b"SELECT pg_sleep(60)")
        else:
            connection.execute("SELECT pg_sleep(60)")


@jobs.task(timeout=0.2, max_attempts=1)
def broken(run: RunContext) -> None:
    def fail() -> None:
        said.append(threading.current_thread() is not threading.main_thread())
        raise SystemExit("no such server")

    with run.cancelling(fail):
        while True:
            time.sleep(0.005)


@jobs.task(timeout=0.2, max_attempts=1)
def holds(run: RunContext) -> None:
    """The block ends while its call is in progress."""
    in_progress = threading.Event()

    def call() -> None:
        in_progress.set()
        let_go.wait(30)
        said.append("called")

    with run.cancelling(call):
        in_progress.wait(30)
    said.append("goes on")


@pytest.fixture
def application() -> Jobs[Any]:
    said.clear()
    let_go.clear()
    return jobs


def asleep(session: Session) -> int:
    session.rollback()
    here = "query = 'SELECT pg_sleep(60)' AND state = 'active' AND datname = current_database()"
    return session.scalar(text(f"SELECT count(*) FROM pg_stat_activity WHERE {here}")) or 0


def ended(session: Session, job: Any) -> tuple[str, str | None]:
    session.rollback()
    runs = session.get_one(jobs.Job, job.id, populate_existing=True).runs
    return (str(runs[0].outcome), runs[0].error_type) if runs else ("", None)


@pytest.mark.slow
@pytest.mark.parametrize("is_in_c", [True, False])
@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_the_query_of_another_connection_ends_on_its_server(session: Session, how: str, is_in_c: bool) -> None:
    with jobs.worker(clock=False):
        job = query.options(timeout=1 if how == "timeout" else None).enqueue(session, is_in_c=is_in_c)
        session.commit()
        wait_until(lambda: asleep(session))
        if how == "cancel":
            jobs.cancel(session, job)
            session.commit()
        wait_until(lambda: not asleep(session), timeout=5)
        wait_until(lambda: ended(session, job)[0])
    assert ended(session, job) == (("cancelled", "Cancel") if how == "cancel" else ("failed", "TimeoutError"))


def run(session: Session, task: Any) -> tuple[str, str | None]:
    job = task.enqueue(session)
    session.commit()
    jobs.worker().drain()
    return ended(session, job)


@pytest.mark.slow
def test_a_call_that_fails_is_logged_and_the_interruption_follows(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(session, broken) == ("failed", "TimeoutError")
    assert said == [True]
    assert "no such server" in caplog.text


@pytest.mark.slow
def test_a_block_waits_for_a_call_in_progress(session: Session) -> None:
    with jobs.worker(clock=False) as worker:
        job = holds.enqueue(session)
        session.commit()
        wait_until(lambda: any(thread.name == "sqla_jobs-cancel" for thread in threading.enumerate()))
        assert (said, worker.runs) == ([], 0)
        let_go.set()
        wait_until(lambda: ended(session, job)[0])
    assert (said, ended(session, job)) == (["called"], ("failed", "TimeoutError"))


def test_what_cannot_be_called_is_refused_and_tests_run_the_block(database: Engine, session: Session) -> None:
    @jobs.task(name="inside")
    def inside(run: RunContext, wrong: bool) -> str:
        with run.cancelling("a name" if wrong else said.append):
            return "ran"

    assert run_job(session, inside)(wrong=False) == "ran"
    with pytest.raises(ArgumentsError):
        run_job(session, inside)(wrong=True)
