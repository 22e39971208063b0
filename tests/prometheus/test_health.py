"""Whether a worker lives and takes jobs, as containers and their orchestrators ask."""

from __future__ import annotations

import signal
import socket
import time

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqla_jobs.cli.main import main
from sqla_jobs.runtime.counters import Counters
from sqla_jobs.runtime.logs import LogOptions
from sqla_jobs.supervisor.options import Application, Setup, SupervisorOptions
from sqla_jobs.supervisor.report import Report
from tests.conftest import StartWorker
from tests.counting import worker_pids
from tests.helpers import free_port, wait_until
from tests.prometheus.conftest import Observed, StartObserved
from tests.shop import jobs, mark


def healthcheck() -> int:
    return CliRunner().invoke(main, ["status", "tests.shop:jobs", "--exit-code"]).exit_code


def execute(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement))


def enqueue(engine: Engine, *, n: int, seconds: float = 0.0) -> None:
    with Session(engine) as session:
        mark.enqueue(session, n=n, seconds=seconds)
        session.commit()


@pytest.mark.slow
def test_a_worker_is_ready_while_heartbeats_are_stored_and_claims_work(
    database: Engine, database_url: str, start_observed: StartObserved
) -> None:
    worker = start_observed(database_url)
    assert worker.get("/healthz")[:2] == worker.get("/readyz?full=1")[:2] == (200, "ok\n")
    assert worker.get("/nothing").status == 404
    (pid,) = worker_pids(database)
    with database.begin() as connection:
        connection.execute(text("LOCK TABLE sqla_processes IN SHARE MODE"))
        wait_until(lambda: worker.get("/readyz").status == 503)
        assert worker.get("/readyz").text.startswith(f"process {pid}: ")
        assert worker.get("/healthz").status == 200
    wait_until(lambda: worker.get("/readyz").status == 200)
    execute(database, "ALTER TABLE sqla_paused_tasks RENAME TO gone")
    enqueue(database, n=1)
    wait_until(lambda: worker.get("/readyz").status == 503)
    assert "ProgrammingError" in worker.get("/readyz").text
    execute(database, "ALTER TABLE gone RENAME TO sqla_paused_tasks")
    wait_until(lambda: worker.get("/readyz").status == 200)


@pytest.mark.slow
def test_a_worker_is_not_ready_before_it_is_registered_and_while_it_stops(
    database: Engine, database_url: str, start_observed: StartObserved, start_worker: StartWorker
) -> None:
    worker = start_observed(database_url)
    enqueue(database, n=1, seconds=1.5)
    wait_until(lambda: jobs_running(database) == 1)
    worker.process.send_signal(signal.SIGTERM)
    wait_until(lambda: worker.get("/readyz").status == 503)
    assert worker.process.wait(30) == 0
    port = free_port()
    bad = Observed(start_worker(database_url.replace("127.0.0.1", "127.0.0.2"), "--metrics-port", str(port)), port)
    wait_until(lambda: bad.get("/healthz").status == 200)
    if has_ipv6():
        socket.create_connection(("::1", port)).close()
    assert bad.get("/readyz").status == 503


def has_ipv6() -> bool:
    """Some containers have none, not even on their own."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def jobs_running(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(text("SELECT count(*) FROM sqla_jobs WHERE state = 'running'")) or 0


def test_a_parent_whose_main_loop_hangs_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report([], Counters(), lambda: Setup(Application("tests.shop:jobs", LogOptions()), SupervisorOptions()))
    report.turned()
    assert report.why_not_alive() is None
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 11)
    assert report.why_not_alive() is not None


def test_healthcheck_looks_for_a_fresh_heartbeat_of_a_worker_of_this_host(database: Engine) -> None:
    assert healthcheck() == 1
    with jobs.worker(heartbeat=300, lease=1000, clock=False):
        assert healthcheck() == 0
        execute(database, "UPDATE sqla_processes SET heartbeat_at = now() - interval '501 s'")
        assert healthcheck() == 1
        execute(database, "UPDATE sqla_processes SET heartbeat_at = now(), host = 'elsewhere'")
        assert healthcheck() == 1
