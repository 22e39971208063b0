"""Worker processes of their own, killed, stopped and cut off; the effects are counted afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from sqla_jobs import ConfigurationError
from sqla_jobs.loading import load_jobs
from sqla_jobs.postgres import LocalServer
from tests import shop
from tests.conftest import ROOT, StartWorker
from tests.counting import attempts_and_runs, children_of, effects, engine_on, enqueue_both, runs, states, tried
from tests.helpers import run_to_end, wait_until
from tests.shop import jobs

pytestmark = pytest.mark.slow


@pytest.mark.promise("Nothing is lost", "Database effects happen exactly once")
def test_kill_9_loses_no_job_and_doubles_no_transactional_effect(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    enqueue_both(database, 60, 0.1, first=3.0)
    victim = start_worker(database_url, "--concurrency", "4")
    wait_until(lambda: states(database)["running"] > 0 and states(database)["succeeded"] > 5)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    assert states(database)["running"] > 0
    start_worker(database_url, "--concurrency", "8")
    wait_until(lambda: states(database) == {"succeeded": 120}, timeout=40)
    assert effects(database, "transactional") == dict.fromkeys(range(60), 1)
    assert set(effects(database, "plain")) == set(range(60))
    assert runs(database, "lost") > 0
    attempts, rows = attempts_and_runs(database)
    assert attempts == rows, "every attempt leaves a run"


@pytest.mark.parametrize("processes", [None, "1"])
def test_a_crash_uses_no_attempt_of_a_job_that_counts_its_losses_apart(
    database: Engine, database_url: str, start_worker: StartWorker, processes: str | None
) -> None:
    """The only attempt of a job, whose process is killed twice as if by another job. Its sibling is charged."""
    with Session(database) as session:
        mine = shop.mark.options(max_attempts=1, max_lost=3).enqueue(session, n=1, seconds=2.0)
        other = shop.mark.options(max_attempts=1).enqueue(session, n=2, seconds=2.0)
        session.commit()
        ids = [mine.id, other.id]

    def has(begun: int, lost: int = 0) -> bool:
        marked = effects(database, "plain")
        return marked[1] >= begun and marked[2] == 1 and runs(database, "lost") >= lost

    options = () if processes is None else ("--processes", processes)
    worker = start_worker(database_url, *options)
    for time in (1, 2):
        wait_until(partial(has, time))
        victims = [worker.pid] if processes is None else children_of(worker)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        if processes is None:
            worker.wait()
            worker = start_worker(database_url, *options)
        wait_until(partial(has, time, 1 + time))
    wait_until(lambda: states(database) == {"succeeded": 1, "failed": 1}, timeout=40)
    with Session(database) as session:
        found = [session.get_one(jobs.Job, one) for one in ids]
        told = [(job.attempt, [(str(run.outcome), run.attempt) for run in job.runs]) for job in found]
    assert told == [(1, [("lost", 1), ("lost", 1), ("succeeded", 1)]), (1, [("lost", 1)])]


@pytest.mark.promise("A worker that lost a job cannot finish it")
def test_a_stopped_worker_loses_its_leases_and_works_again_when_continued(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    with Session(database) as session:  # of different lengths, so that not all are frozen at the same point
        for task in (shop.write, shop.mark):
            task.enqueue_many(session, ({"n": n, "seconds": 0.15 + n % 4 * 0.05} for n in range(30)))
        session.commit()
    frozen = start_worker(database_url, "--concurrency", "4")
    wait_until(lambda: states(database)["running"] > 0 and states(database)["succeeded"] > 2)
    os.killpg(frozen.pid, signal.SIGSTOP)
    other = start_worker(database_url, "--concurrency", "8")
    # one frozen between its fence and its COMMIT holds that job's row until it goes on
    wait_until(lambda: runs(database, "lost") > 0 and states(database)["succeeded"] >= 57, timeout=40)
    os.killpg(frozen.pid, signal.SIGCONT)
    wait_until(lambda: states(database) == {"succeeded": 60}, timeout=40)
    other.send_signal(signal.SIGTERM)
    assert other.wait(20) == 0
    enqueue_both(database, 10, 0.0)
    wait_until(lambda: states(database) == {"succeeded": 80}, timeout=40)
    expected = {n: 2 if n < 10 else 1 for n in range(30)}
    assert effects(database, "transactional") == expected
    assert set(effects(database, "plain")) == set(range(30))
    attempts, rows = attempts_and_runs(database)
    assert attempts == rows


def test_sigterm_gives_back_what_has_not_started_lets_the_rest_end_and_exits_0(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    with Session(database) as session:
        shop.mark.enqueue_many(session, ({"n": n, "seconds": 0.02} for n in range(200)))
        shop.mark.enqueue_many(session, ({"n": n, "seconds": 1.0} for n in range(200, 260)))
        session.commit()
    worker = start_worker(database_url, "--concurrency", "4")
    wait_until(lambda: states(database)["succeeded"] >= 200)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    now = states(database)
    assert now["running"] == 0
    assert now["queued"] == 260 - now["succeeded"] > 0
    assert effects(database, "plain") == dict.fromkeys(range(now["succeeded"]), 1)
    with Session(database) as session:
        assert set(session.scalars(select(jobs.Job.attempt).where(jobs.Job.state == "queued"))) == {0}
        assert session.scalar(select(func.count()).select_from(jobs.Process)) == 0


def test_a_second_signal_ends_the_worker_at_once(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    with Session(database) as session:
        shop.mark.enqueue(session, n=1, seconds=60.0)
        session.commit()
    worker = start_worker(database_url)
    wait_until(lambda: effects(database, "plain") == {1: 1})
    worker.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.6)
    worker.send_signal(signal.SIGINT)
    assert worker.wait(5) == 128 + signal.SIGINT


def test_cut_connections_cost_nothing(database: Engine, database_url: str, start_worker: StartWorker) -> None:
    enqueue_both(database, 100, 0.05)
    worker = start_worker(database_url, "--concurrency", "4")
    for done in (10, 50, 90):
        wait_until(partial(_more_than, database, done))
        with database.connect() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
    wait_until(lambda: tried(lambda: states(database) == {"succeeded": 200}), timeout=60)
    assert effects(database, "transactional") == dict.fromkeys(range(100), 1)
    assert set(effects(database, "plain")) == set(range(100))
    assert worker.poll() is None


def _more_than(engine: Engine, done: int) -> bool:
    return states(engine)["succeeded"] > done


@pytest.mark.promise("Nothing is lost", "Database effects happen exactly once")
def test_a_crash_of_the_server_is_survived_without_a_restart_of_the_worker(
    start_worker: StartWorker,
) -> None:
    with LocalServer(durable=True) as server, engine_on(server.url) as engine:
        shop.Base.metadata.create_all(engine)
        enqueue_both(engine, 60, 0.05)
        worker = start_worker(server.url, "--concurrency", "4")
        wait_until(lambda: states(engine)["succeeded"] > 20)
        server.crash()
        server.start()
        wait_until(lambda: tried(lambda: states(engine) == {"succeeded": 120}), timeout=60)
        assert effects(engine, "transactional") == dict.fromkeys(range(60), 1)
        assert set(effects(engine, "plain")) == set(range(60))
        assert worker.poll() is None
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0


def run_worker(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return run_to_end([sys.executable, "-m", "sqla_jobs.worker", *arguments], cwd)


def test_a_thread_that_a_job_left_behind_does_not_keep_the_worker_alive(database: Engine, database_url: str) -> None:
    with Session(database) as session:
        shop.misbehave.enqueue(session, how="thread")
        session.commit()
    done = run_worker("tests.shop:jobs", "--database-url", database_url, "--drain")
    assert done.returncode == 0, done.stderr
    assert "thread Thread-" in done.stderr


@pytest.mark.parametrize(
    ("application", "named"),
    [
        ("nowhere:jobs", "'nowhere'"),
        ("tests.shop:job", "'jobs'"),
        ("tests.shop:begun", "Event"),
        ("shop", "shop"),
    ],
)
def test_what_names_no_application_is_told_plainly(application: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        load_jobs(application)


def test_the_application_is_found_in_the_current_folder(tmp_path: Path, database_url: str) -> None:
    (tmp_path / "shop.py").write_text(
        """
from sqlalchemy.orm import DeclarativeBase
from sqla_jobs import Jobs

class Base(DeclarativeBase): ...

jobs = Jobs(Base, modules=["mail"])

class App:
    extensions = {"sqla_jobs": jobs}

def create_app():
    return App()
"""
    )
    (tmp_path / "mail.py").write_text(
        "from shop import jobs\n\n@jobs.task\ndef send(to: str) -> None: print('sent to', to)\n"
    )
    program = f"""
import sqlalchemy, shop
engine = sqlalchemy.create_engine({database_url!r})
shop.Base.metadata.create_all(engine)
with sqlalchemy.orm.Session(engine) as session:
    shop.jobs.tasks["send"].enqueue(session, to="ann")
    session.commit()
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=60)

    done = run_worker("shop:create_app", "--database-url", database_url, "--drain", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "sent to ann\n1 run\n"), done.stderr
