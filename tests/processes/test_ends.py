"""Worker processes end in time and with the right exit code, whatever their jobs have left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, make_url
from sqlalchemy.orm import Session

from sqla_jobs import Jobs
from tests import leaving_shop
from tests.conftest import ROOT, StartWorker
from tests.helpers import spawning, states, wait_until
from tests.leaving_shop import leave, leave_to_thread, terminate_a_fork

pytestmark = pytest.mark.slow

GRACE = 1.0
IN_TIME = GRACE + 20.0
STARTS_WITHIN = 30.0
"""Seconds that several processes may take to start at once, and to run their job."""
NAMED = {
    "executor": "thread ThreadPoolExecutor",
    "to_thread": "thread asyncio_0",
    "thread": "in stuck",
    "atexit": "MainThread",
    "frozen": "is killed: it did not end in time",
    "context": "in stuck",
    "process": "stuck-process",
    "lock": "_hold_the_lock_of_the_log",
}
"""What a job may leave behind, and how the log names it."""


@pytest.fixture
def application() -> Jobs[Any]:
    return leaving_shop.jobs


def enqueue(database: Engine, what: str) -> None:
    """Enqueue a job that leaves this behind, in a queue of this name."""
    with Session(database) as session:
        if what == "to_thread":
            leave_to_thread.options(queue=what).enqueue(session)
        else:
            leave.options(queue=what).enqueue(session, what=what)
        session.commit()


def log_of(what: str, folder: Path) -> str:
    return (folder / f"{what}.log").read_text()


@pytest.fixture
def drains(database: Engine, database_url: str, tmp_path: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """A draining worker for each kind of job."""
    command = [sys.executable, "-m", "sqla_jobs.worker", "tests.leaving_shop:jobs"]
    flask = [sys.executable, "-m", "flask", "--app", "tests.leaving_shop", "jobs", "worker"]
    with spawning() as spawn:
        drains: dict[str, subprocess.Popen[bytes]] = {}
        for what in [*NAMED, "daemon"]:
            enqueue(database, what)
            options = ["--database-url", database_url, "--drain", "--grace", f"{GRACE:g}", "--queues", what]
            options += ["--processes", "2"] if what == "executor" else []
            program = flask if what == "process" else command
            drains[what] = spawn([*program, *options], ROOT, tmp_path / f"{what}.log")
        yield drains


def test_a_drain_ends_in_time_and_well_whatever_its_jobs_have_left_behind_and_names_it(
    database: Engine, drains: dict[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    until = time.monotonic() + STARTS_WITHIN + IN_TIME
    codes: dict[str, int | None] = {}
    for what, drain in drains.items():
        try:
            codes[what] = drain.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            codes[what] = None
    assert codes == dict.fromkeys(drains, 0)
    with Session(database) as session:
        ended = sorted(states(session).values())
    assert ended == ["failed"] + ["succeeded"] * (len(drains) - 1), "only the thread of a coroutine took too long"
    logs = {what: log_of(what, tmp_path) for what in drains}
    assert [what for what, name in NAMED.items() if name not in logs[what]] == []
    del logs["lock"]  # where the drain itself has to log something, it is repeated
    assert [what for what, log in logs.items() if "1 run\n" not in log] == []
    assert "this process ends" not in logs["daemon"], "Python ends it"


def test_a_worker_that_is_stopped_ends_in_time_and_names_what_its_jobs_have_left_behind(
    database: Engine, database_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    enqueue(database, "executor")
    options = ("--queues", "executor", "--grace", f"{GRACE:g}")
    worker = start_worker(database_url, *options, application="tests.leaving_shop:jobs")
    with Session(database) as session:
        wait_until(lambda: "succeeded" in states(session).values())
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(IN_TIME) == 0
    assert NAMED["executor"] in log_of("worker-0", tmp_path)


def test_a_worker_that_cannot_start_ends_with_1_whatever_the_application_has_started(
    database_url: str, start_worker: StartWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEAVES_WHEN_IMPORTED", "1")
    nowhere = make_url(database_url).set(database="nowhere").render_as_string(hide_password=False)
    worker = start_worker(nowhere, "--drain", application="tests.leaving_shop:jobs")
    assert worker.wait(IN_TIME) == 1
    assert NAMED["executor"] in log_of("worker-0", tmp_path)


def test_a_process_that_a_job_has_forked_can_be_terminated(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    with Session(database) as session:
        job = terminate_a_fork.enqueue(session)
        session.commit()
        assert start_worker(database_url, "--drain", application="tests.leaving_shop:jobs").wait(30) == 0
        session.refresh(job)
        assert job.result == -signal.SIGTERM
