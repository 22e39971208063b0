"""The parent of worker processes: what it does when they die, hang, grow or are to be replaced."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, Integer, func, make_url, select, text
from sqlalchemy.orm import Session

from sqla_jobs.cli.main import main
from tests import shop
from tests.conftest import ROOT, StartWorker
from tests.counting import attempts_and_runs, children_of, effects, enqueue_both, runs, states, worker_pids
from tests.helpers import refusals, refuse, run_to_end, wait_until
from tests.shop import jobs

pytestmark = pytest.mark.slow


def log_of(tmp_path: Path) -> str:
    return "".join(path.read_text() for path in sorted(tmp_path.glob("worker-*.log")))


def left_to_others(database: Engine, begun: set[int]) -> list[int]:
    """Jobs that have not ended, except those begun."""
    with Session(database) as session:
        return [*session.scalars(select(jobs.Job.id).where(jobs.Job.finished_at.is_(None), jobs.Job.id.not_in(begun)))]


def begun_by_the_stopped(tmp_path: Path) -> set[int]:
    """The jobs that a process had begun when its parent found that it makes no progress."""
    wait_until(lambda: "makes no progress" in log_of(tmp_path), timeout=30)
    said = log_of(tmp_path).partition("It holds")[2].partition("\n")[0]
    return {int(number) for number in re.findall(r"job (\d+)", said)}


def test_a_job_that_cannot_be_interrupted_is_cancelled_by_killing_its_process(
    database: Engine, database_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    with Session(database) as session:
        job = shop.hang.enqueue(session, n=1)
        session.commit()
        start_worker(database_url, "--kill-after", "0.5", "--hung-after", "2000")
        wait_until(lambda: effects(database, "plain") == {1: 1})
        jobs.cancel(session, job, kill=True)
        session.commit()
        wait_until(lambda: states(database)["cancelled"] == 1, timeout=30)
        (run,) = session.scalars(select(jobs.Run)).all()
        assert "was cancelled and did not stop, so its process" in (run.error or "")
    assert "is killed: job 1 did not end in time" in log_of(tmp_path)


def test_a_process_is_not_killed_for_a_cancelled_job_that_is_over(
    database: Engine, database_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Its end cannot be stored yet, since somebody holds its row locked."""
    start_worker(database_url, "--kill-after", "0.5")
    wait_until(lambda: len(worker_pids(database)) == 1)
    with Session(database) as session:
        job = shop.cooperative.enqueue(session)
        shop.mark.options(max_attempts=1).enqueue(session, n=1, seconds=4)
        session.commit()
        wait_until(lambda: states(database)["running"] == 2)
        jobs.cancel(session, job, kill=True)
        session.commit()
        session.execute(select(jobs.Job.id).where(jobs.Job.id == job.id).with_for_update())
        wait_until(lambda: states(database) == {"running": 1, "succeeded": 1})
    wait_until(lambda: states(database) == {"succeeded": 2})
    assert "is killed" not in log_of(tmp_path)


def test_a_killed_child_costs_what_it_had_begun_one_attempt_and_the_rest_nothing(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    """The lease is an hour: all this is the parent's doing."""
    with Session(database) as session:
        shop.mark.enqueue_many(session, ({"n": n, "seconds": 0.01} for n in range(100)))
        shop.mark.enqueue_many(session, ({"n": n, "seconds": 2.0} for n in range(100, 140)))
        session.commit()
    start_worker(database_url, "--heartbeat", "1", "--lease", "3600", "--concurrency", "4")
    wait_until(lambda: states(database)["running"] > 4 and states(database)["succeeded"] == 100)
    wait_until(lambda: len(effects(database, "plain")) > 100)
    (victim,) = worker_pids(database)
    begun = len(effects(database, "plain"))
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: runs(database, "lost"))
    wait_until(lambda: victim not in worker_pids(database) and len(effects(database, "plain")) > begun)
    lost = runs(database, "lost")
    assert 1 <= lost <= 4
    charged = select(func.sum(jobs.Job.attempt - (jobs.Job.state == "running").cast(Integer)))
    ended = select(func.count()).select_from(jobs.Run)
    with Session(database) as session:  # one statement, for the others are still at work
        assert session.scalar(select(charged.scalar_subquery() - ended.scalar_subquery())) == 0


def test_what_a_dead_child_was_just_claiming_costs_nothing_and_goes_on(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    """The server is still at it, for two seconds, when the child has long been dead. The lease is an hour."""
    start_worker(database_url, "--heartbeat", "1", "--lease", "3600")
    wait_until(lambda: len(worker_pids(database)) == 1)
    slow = "IF NEW.state = 'running' THEN PERFORM pg_sleep(2); END IF; RETURN NEW;"
    _execute(database, f"CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {slow} END $$")
    _execute(database, "CREATE TRIGGER slow BEFORE UPDATE ON sqla_jobs FOR EACH ROW EXECUTE FUNCTION slow()")
    with Session(database) as session:
        shop.mark.enqueue(session, n=1)
        session.commit()
    sleeping = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    wait_until(lambda: _execute(database, sleeping).all())
    os.kill(worker_pids(database)[0], signal.SIGKILL)
    wait_until(lambda: states(database) == {"succeeded": 1})
    assert attempts_and_runs(database) == (1, 1)


def test_children_end_when_their_parent_is_gone(database: Engine, database_url: str, start_worker: StartWorker) -> None:
    parent = start_worker(database_url, "--processes", "2", "--heartbeat", "1", "--lease", "60")
    wait_until(lambda: len(worker_pids(database)) == 2)
    children = children_of(parent)
    enqueue_both(database, 10, 0.1)
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(Path("/proc", str(pid), "cmdline").exists() for pid in children))
    assert worker_pids(database) == []
    assert states(database)["running"] == 0


@pytest.mark.promise("A crash counts as an attempt")
def test_a_job_that_kills_its_process_again_and_again_ends_as_failed(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    with Session(database) as session:
        shop.die_by.enqueue(session, how="segfault")
        shop.mark.enqueue_many(session, ({"n": n} for n in range(20)))
        session.commit()
    start_worker(database_url, "--lease", "3600", "--concurrency", "2")
    wait_until(lambda: states(database) == {"failed": 1, "succeeded": 20}, timeout=40)
    assert runs(database, "lost") >= 2
    with Session(database) as session:
        ended = session.scalars(select(jobs.Run.error).join(jobs.Job, jobs.Job.id == jobs.Run.job_id)).all()
    assert any("SIGSEGV" in (error or "") for error in ended)


def test_a_job_that_cannot_be_interrupted_is_killed_after_its_timeout_and_tried_by_its_policy(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    with Session(database) as session:
        job = shop.hold_the_gil.enqueue(session)
        session.commit()
        start_worker(database_url, "--lease", "3600", "--kill-after", "0.5")
        wait_until(lambda: states(database) == {"failed": 1}, timeout=40)
        session.refresh(job)
        assert [run.outcome for run in job.runs] == ["retried", "failed"]
        assert {run.error_type for run in job.runs} == {"TimeoutError"}
        assert "timeout of 0.3 s" in (job.runs[0].error or "")


def test_user_code_that_holds_the_interpreter_costs_no_lease(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    start_worker(database_url)
    start_worker(database_url)
    wait_until(lambda: len(worker_pids(database)) == 2)
    with Session(database) as session:
        shop.hold_the_gil_for.enqueue(session, seconds=4)  # the lease is 1.5 s
        session.commit()
    wait_until(lambda: states(database) == {"succeeded": 1})
    assert runs(database, "lost") == 0


def test_sighup_replaces_the_children_one_by_one(
    database: Engine, database_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    parent = start_worker(database_url, "--processes", "2", "--concurrency", "2")
    wait_until(lambda: len(worker_pids(database)) == 2)
    before = children_of(parent)
    enqueue_both(database, 40, 0.1)
    parent.send_signal(signal.SIGHUP)
    wait_until(lambda: len(worker_pids(database)) == 2 and not before & set(worker_pids(database)))
    wait_until(lambda: states(database) == {"succeeded": 80})
    assert effects(database, "plain") == dict.fromkeys(range(40), 1)
    assert attempts_and_runs(database) == (80, 80)
    wait_until(lambda: "all processes are replaced" in log_of(tmp_path), timeout=40)


def test_new_code_that_does_not_start_leaves_the_old_at_work(
    database: Engine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # two versions within a second look the same to its cache
    module = tmp_path / "app.py"
    code = f"""
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase
from sqla_jobs import Jobs

class Base(DeclarativeBase): ...

jobs = Jobs(Base, bind=create_engine({database_url!r}))

@jobs.task
def version() -> str:
    return "old"

Base.metadata.create_all(jobs._binding().engine)
"""
    module.write_text(code)
    log = tmp_path / "log"
    command = [sys.executable, "-m", "sqla_jobs.worker", "app:jobs", "--heartbeat", "0.2", "--lease", "1.5"]
    with log.open("wb") as output:
        parent = subprocess.Popen(
            [*command, "--reload"], cwd=tmp_path, stderr=output, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        )
    try:
        wait_until(lambda: len(worker_pids(database)) == 1, message=log.read_text())
        (old,) = worker_pids(database)
        module.write_text("raise RuntimeError('half typed')")
        wait_until(lambda: "the old ones continue" in log.read_text(), message=log.read_text())
        assert worker_pids(database) == [old]
        module.write_text(code.replace('"old"', '"new"'))
        wait_until(lambda: set(worker_pids(database)) - {old}, message=log.read_text())
    finally:
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(20) == 0


def test_a_parent_whose_password_expired_is_told_the_new_one(
    database: Engine, database_url: str, tmp_path: Path
) -> None:
    """As with tokens that live for minutes: its connection breaks, and no other does."""
    role = f"sqla_jobs_{uuid.uuid4().hex}"
    log, password = tmp_path / "log", tmp_path / "password"
    password.write_text("one")
    dsn = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    (tmp_path / "app.py").write_text(f"""
from pathlib import Path
import psycopg
from sqlalchemy import create_engine
from tests.shop import jobs

def connect():
    return psycopg.connect({dsn!r}, user={role!r}, password=Path("password").read_text())

jobs.bind(create_engine("postgresql+psycopg://", creator=connect))
""")
    execute = partial(_execute, database)
    execute(f"CREATE ROLE {role} LOGIN PASSWORD 'one'")
    execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}")
    command = [sys.executable, "-m", "sqla_jobs.worker", "app:jobs", "--heartbeat", "0.2", "--lease", "1.5"]
    with log.open("wb") as output:
        parent = subprocess.Popen(
            [*command, "--no-clock"],
            cwd=tmp_path,
            stderr=output,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
    try:
        enqueue_both(database, 5, 0.0)
        wait_until(lambda: states(database) == {"succeeded": 10})
        password.write_text("two")
        execute(f"ALTER ROLE {role} PASSWORD 'two'")
        latest = "query LIKE '%SET heartbeat_at%' OR query LIKE 'WITH orphan %'"  # what its connection is sent by turns
        beats = f"SELECT pid FROM pg_stat_activity WHERE usename = '{role}' AND ({latest})"
        wait_until(lambda: execute(f"SELECT pg_terminate_backend(pid) FROM ({beats}) AS beating").all())
        wait_until(lambda: "heartbeat failed" in log.read_text(), message=log.read_text())
        wait_until(lambda: "heartbeat works again" in log.read_text(), message=log.read_text())
        enqueue_both(database, 5, 0.0)
        wait_until(lambda: states(database) == {"succeeded": 20})
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
        execute(f"DROP OWNED BY {role}")
        execute(f"DROP ROLE {role}")


def _execute(engine: Engine, statement: str) -> Any:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        result = connection.execute(text(statement))
        return result.freeze()() if result.returns_rows else None


@pytest.mark.parametrize("limit", [("--max-jobs", "10"), ("--max-memory", "1")])
def test_a_child_past_its_limits_is_replaced_and_nothing_is_lost(
    database: Engine, database_url: str, start_worker: StartWorker, limit: tuple[str, str]
) -> None:
    start_worker(database_url, "--concurrency", "2", *limit)
    wait_until(lambda: len(worker_pids(database)) == 1)
    (first,) = worker_pids(database)
    enqueue_both(database, 50, 0.02)
    wait_until(lambda: states(database) == {"succeeded": 100} and first not in worker_pids(database), timeout=40)
    assert attempts_and_runs(database) == (100, 100)


def test_several_processes_drain_their_queues_and_none_is_started_again(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    with Session(database) as session:
        shop.mark.enqueue_many(session, ({"n": n, "seconds": 0.01} for n in range(300)))
        session.commit()
    worker = start_worker(database_url, "--drain", "--processes", "3", "--max-jobs", "100")
    assert worker.wait(120) == 0
    assert states(database) == {"succeeded": 300}


def test_a_child_that_was_taken_for_dead_goes_on_under_a_new_id(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    start_worker(database_url)
    wait_until(lambda: len(worker_pids(database)) == 1)
    with Session(database) as session:
        first = session.scalars(select(jobs.Process.id).where(jobs.Process.kind == "worker")).one()
        session.delete(session.get_one(jobs.Process, first))
        session.commit()
    wait_until(lambda: len(worker_pids(database)) == 1)
    enqueue_both(database, 5, 0.0)
    wait_until(lambda: states(database) == {"succeeded": 10})
    with Session(database) as session:
        assert session.scalars(select(jobs.Process.id).where(jobs.Process.kind == "worker")).one() != first


def test_sigusr1_and_a_slow_job_show_where_jobs_are(
    database: Engine, database_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    with Session(database) as session:
        shop.mark.enqueue(session, n=1, seconds=3.0)
        session.commit()
    parent = start_worker(database_url, "--slow-after", "0.5")
    wait_until(lambda: effects(database, "plain") == {1: 1})
    parent.send_signal(signal.SIGUSR1)
    wait_until(lambda: "1 job running here" in log_of(tmp_path) and log_of(tmp_path).count("and is here") >= 2)
    assert "time.sleep(seconds)" in log_of(tmp_path)


def test_a_process_that_makes_no_progress_is_shown_until_it_goes_on(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    def told(*arguments: str) -> str:
        done = CliRunner().invoke(main, [*arguments, "tests.shop:jobs"])
        assert done.exit_code in (0, 1), done.output
        return done.stdout

    def stalled() -> list[float | None]:
        return [process["stalled"] for process in json.loads(told("status", "--json"))["processes"]]

    with Session(database) as session:
        shop.mark.enqueue(session, n=1, seconds=60.0)
        session.commit()
    start_worker(database_url, "--hung-after", "0", "--lease", "60")
    wait_until(lambda: effects(database, "plain") == {1: 1})
    (child,) = worker_pids(database)
    assert stalled() == [None]
    os.kill(child, signal.SIGSTOP)
    wait_until(lambda: stalled() != [None], timeout=30)
    (seconds,) = stalled()
    assert 5 <= (seconds or 0) < 60
    (found,) = [one for one in json.loads(told("doctor", "--json")) if one["about"].startswith(f"process {child} of ")]
    assert (found["verdict"], "it holds 1 job" in found["found"]) == ("warning", True)
    os.kill(child, signal.SIGCONT)
    wait_until(lambda: stalled() == [None], timeout=30)


def test_what_a_dead_child_had_begun_is_charged_also_where_that_fails_at_first(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    start_worker(database_url)
    wait_until(lambda: len(worker_pids(database)) == 1)
    with Session(database) as session:
        refuse(session, "NEW.outcome = 'lost'", table="sqla_runs", when="BEFORE INSERT", errcode="57014")
        shop.mark.options(max_attempts=1).enqueue(session, n=7, seconds=60)
        session.commit()
    wait_until(lambda: effects(database, "plain") == {7: 1})
    os.kill(worker_pids(database)[0], signal.SIGKILL)
    wait_until(lambda: refusals(database))
    _execute(database, "DROP TRIGGER refuse ON sqla_runs")
    wait_until(lambda: states(database) == {"failed": 1})
    assert effects(database, "plain") == {7: 1}
    assert runs(database, "lost") == 1


def process_ids(engine: Engine, *which: Any) -> set[uuid.UUID]:
    with Session(engine) as session:
        return set(session.scalars(select(jobs.Process.id).where(*which)))


def test_a_job_of_a_dead_child_whose_end_is_refused_holds_up_neither_its_siblings_nor_other_jobs(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    start_worker(database_url, "--processes", "2", "--concurrency", "1")
    wait_until(lambda: len(worker_pids(database)) == 2)
    with Session(database) as session:
        refuse(session, "OLD.args->>'n' = '7' AND OLD.state = 'running'")
        bad = shop.mark.enqueue(session, n=7, seconds=60)
        session.commit()
        wait_until(lambda: effects(database, "plain") == {7: 1})
        of_bad = select(jobs.Process.id, jobs.Process.pid).where(
            jobs.Process.id == select(jobs.Job.process_id).scalar_subquery()
        )
        victim, pid = session.execute(of_bad).one()
        siblings = set(session.scalars(select(jobs.Process.id).where(jobs.Process.id != victim)))
        session.commit()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: victim not in process_ids(database))
        for n in range(100, 110):
            shop.mark.enqueue(session, n=n, seconds=0.3)
        session.commit()
        wait_until(lambda: states(database) == {"running": 1, "succeeded": 10})
        assert siblings <= process_ids(database), "none of them was taken for dead"
        wait_until(lambda: process_ids(database, jobs.Process.set_aside.has_key(f"job {bad.id}")))


def hang_in_the_midst(session: Session) -> None:
    """Of so many short jobs that the process of one which hangs holds some that it has not begun."""
    short = shop.mark.options(max_attempts=1)
    short.enqueue_many(session, ({"n": n} for n in range(500)))
    shop.hold_the_gil_for.options(max_attempts=1).enqueue(session, seconds=60)
    short.enqueue_many(session, ({"n": n} for n in range(500, 1000)))
    session.commit()


def is_held(engine: Engine) -> bool:
    """Whether one process holds the job that hangs and others, and nothing moves."""
    with Session(engine) as session:
        running = select(jobs.Job.task, jobs.Job.id).where(jobs.Job.state == "running")
        before = session.execute(running).all()
        time.sleep(0.3)
        return len(before) > 1 and "hold_the_gil_for" in dict(before) and session.execute(running).all() == before


def test_what_a_hung_process_has_not_begun_is_run_by_others_and_it_is_killed_later(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    """Its interpreter is held by C code, and the task has no timeout. The lease is an hour."""
    calm = ("--heartbeat", "1", "--lease", "3600", "--concurrency", "1")
    start_worker(database_url, *calm, "--hung-after", "13")
    with Session(database) as session:
        hang_in_the_midst(session)
    wait_until(lambda: is_held(database))
    start_worker(database_url, *calm)
    wait_until(lambda: effects(database, "plain") == dict.fromkeys(range(1000), 1), timeout=30)
    assert states(database)["failed"] == 0, "the process still lives, and so may its job"
    wait_until(lambda: states(database)["running"] == 0, timeout=60)
    assert effects(database, "plain") == dict.fromkeys(range(1000), 1), "none of them began twice"
    with Session(database) as session:
        lost = session.scalars(select(jobs.Run).where(jobs.Run.outcome == "lost")).all()
        tasks = set(session.scalars(select(jobs.Job.task).where(jobs.Job.id.in_([run.job_id for run in lost]))))
    assert "hold_the_gil_for" in tasks
    assert states(database) == {"failed": len(lost), "succeeded": 1001 - len(lost)}  # some ends were not stored yet


def test_a_process_that_stops_while_it_starts_is_killed_and_told_of(database_url: str, tmp_path: Path) -> None:
    """Its parent has heard nothing of it yet."""
    (tmp_path / "app.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n")
    command = [sys.executable, "-m", "sqla_jobs.worker", "app:jobs", "--hung-after", "2", "--database-url"]
    done = run_to_end([*command, database_url], tmp_path)
    assert (done.returncode, "was killed by SIGKILL before it was ready" in done.stderr) == (1, True)


def test_a_process_that_freezes_in_the_middle_of_a_message_keeps_its_parent_from_nothing(
    database: Engine, database_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    calm = ("--heartbeat", "1", "--lease", "3600", "--concurrency", "2", "--hung-after", "3")
    worker = start_worker(database_url, *calm, "--processes", "2")
    wait_until(lambda: len(worker_pids(database)) == 2)
    before = {*worker_pids(database)}
    with Session(database) as session:
        shop.freeze_in_the_middle_of_a_message.enqueue(session)
        session.commit()
    wait_until(lambda: states(database)["failed"] == 1, message="it was not killed")
    wait_until(lambda: len({*worker_pids(database)} - before) == 1, message="it was not replaced")
    worker.terminate()
    assert worker.wait(timeout=30) == 0


def test_a_process_that_cannot_be_started_is_started_later(
    database: Engine, database_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker(database_url, "--processes", "2", "--lease", "60")
    wait_until(lambda: len(worker_pids(database)) == 2)
    children = children_of(worker)
    soft, hard = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (3, hard))
    os.kill(min(children), signal.SIGKILL)
    wait_until(lambda: log_of(tmp_path).count("WARNING sqla_jobs.worker no process can be started") >= 2)
    assert max(children) in children_of(worker)
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (soft, hard))
    wait_until(lambda: len({*worker_pids(database)} - children) == 1)


def test_a_process_that_was_stopped_begins_nothing_that_was_given_to_others_meanwhile(
    database: Engine, database_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    calm = ("--heartbeat", "1", "--lease", "3600", "--concurrency", "2", "--hung-after", "4")
    first = start_worker(database_url, *calm, "--hung-after", "0")
    wait_until(lambda: len(worker_pids(database)) == 1)
    (child,) = children_of(first)
    with Session(database) as session:
        shop.mark.options(max_attempts=1).enqueue_many(session, ({"n": n, "seconds": 0.01} for n in range(3000)))
        session.commit()
    wait_until(lambda: states(database)["succeeded"] > 200)  # of nearly four seconds' work
    os.kill(child, signal.SIGSTOP)
    start_worker(database_url, *calm)
    begun = begun_by_the_stopped(tmp_path)
    wait_until(lambda: not left_to_others(database, begun), timeout=60)
    os.kill(child, signal.SIGCONT)
    wait_until(lambda: "continues" in log_of(tmp_path), timeout=30)
    with Session(database) as session:
        shop.mark.options(max_attempts=1).enqueue_many(session, ({"n": n} for n in range(3000, 3100)))
        session.commit()
    wait_until(lambda: states(database) == {"succeeded": 3100}, timeout=30)
    assert effects(database, "plain") == dict.fromkeys(range(3100), 1), "none of them began twice"


def test_what_a_stopped_process_held_is_given_to_others_also_where_its_row_was_locked(
    database: Engine, database_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    calm = ("--heartbeat", "0.5", "--lease", "3600", "--concurrency", "2", "--hung-after")
    first = start_worker(database_url, *calm, "0")
    wait_until(lambda: len(worker_pids(database)) == 1)
    (child,) = children_of(first)
    with Session(database) as session:
        shop.mark.enqueue_many(session, ({"n": n, "seconds": 0.001} for n in range(2000)))
        session.commit()
    wait_until(lambda: 100 < states(database)["succeeded"] < 1900)
    os.kill(child, signal.SIGSTOP)
    with Session(database) as session:
        held = select(jobs.Job.id).where(jobs.Job.state == "running").with_for_update(skip_locked=True)
        session.execute(held).all()
        begun = begun_by_the_stopped(tmp_path)
        beat = _execute(database, "SELECT max(heartbeat_at) FROM sqla_processes").scalar_one()
        later = f"SELECT max(heartbeat_at) > '{beat}'::timestamptz + interval '1.5 s' FROM sqla_processes"
        wait_until(lambda: _execute(database, later).scalar_one())
    start_worker(database_url, *calm, "300")
    wait_until(lambda: not left_to_others(database, begun), timeout=60)


def test_a_child_that_is_asked_to_start_anew_passes_that_on(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    """`status` shows its pid, and not that of its parent."""
    start_worker(database_url)
    wait_until(lambda: len(worker_pids(database)) == 1)
    (before,) = worker_pids(database)
    with Session(database) as session:
        shop.mark.options(max_attempts=1).enqueue(session, n=1, seconds=1)
        session.commit()
    wait_until(lambda: effects(database, "plain") == {1: 1})
    os.kill(before, signal.SIGHUP)
    wait_until(lambda: worker_pids(database) and before not in worker_pids(database))
    assert states(database) == {"succeeded": 1}
