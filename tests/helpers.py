"""What several test modules need."""

from __future__ import annotations

import copy
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, registry

from sqla_jobs import JobMixin, Jobs
from sqla_jobs.runtime.counters import Counters
from sqla_jobs.tasks.hooks import Hooks
from sqla_jobs.tasks.registry import Tasks
from sqla_jobs.tasks.schedule import Schedules

MAPPED: Jobs[Any] = Jobs(registry())
WAITING_HERE = """pg_locks WHERE NOT granted AND locktype = 'advisory'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
"""Advisory locks that are waited for; other databases of the server are none of a test's business."""


def wait_until(
    condition: Callable[[], object],
    *,
    timeout: float = 40.0,
    message: str = "the condition did not come true",
) -> None:
    """Return once `condition()` is true; AssertionError with `message` after `timeout` seconds.

    It is asked ever more seldom: most of them ask the database, which takes as much time as what is waited for.
    """
    deadline, pause = time.monotonic() + timeout, 0.01
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{message} (waited {timeout} s)")
        time.sleep(pause)
        pause = min(pause * 1.2, 0.05)


@contextmanager
def spawning() -> Generator[Callable[[list[str], Path, Path], subprocess.Popen[bytes]]]:
    """Yield a function that starts a command in a folder, as a process group of its own, with its output in a log.

    At the end, whatever is left is killed, and the logs are printed.
    """
    started, logs = list[subprocess.Popen[bytes]](), list[Path]()

    def start(command: list[str], folder: Path, log: Path) -> subprocess.Popen[bytes]:
        logs.append(log)
        with log.open("ab") as out:
            started.append(subprocess.Popen(command, cwd=folder, stderr=out, stdout=out, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for log in dict.fromkeys(logs):
        print(log.name, log.read_text(), sep="\n")


def run_to_end(command: list[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a Python command. AssertionError after a minute, with its output and where each of its threads was."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            said, logged = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            raise AssertionError("\n".join(["it did not end", *process.communicate(timeout=10)])) from None
    return subprocess.CompletedProcess(command, process.returncode, said, logged)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def waiting_for_locks(engine: Engine) -> int:
    """How many sessions of this database wait for a lock, such as that of a row."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with engine.connect() as connection:
        return connection.scalar(text(waiting)) or 0


def new_jobs() -> Jobs[JobMixin]:
    """Jobs of code that has declared nothing yet, on tables that are mapped once: that takes 30 ms."""
    jobs = copy.copy(MAPPED)
    jobs.tasks, jobs.schedules, jobs._hooks, jobs._counters = (
        Tasks(()),
        Schedules(),
        Hooks(jobs._hooks.context_in),
        Counters(),
    )
    return jobs


def states(session: Session) -> dict[int, str]:
    """The state of each job by its id, as committed now."""
    session.rollback()
    rows = session.execute(text("SELECT id, state FROM sqla_jobs ORDER BY id"))
    return {row[0]: row[1] for row in rows}


def as_id(value: object) -> str:
    """A test's name for a parameter: its text without addresses, which each process of a test run has its own of."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def refuse(
    session: Session,
    condition: str,
    *,
    table: str = "sqla_jobs",
    when: str = "BEFORE UPDATE",
    errcode: str = "P0001",
) -> None:
    """From now on a trigger, as an application might have one, raises an error where `condition` holds of a row.

    `refusals` counts how often it did.
    """
    session.execute(
        text(
            f"""
            CREATE SEQUENCE refusals; -- which no rollback sets back
            CREATE FUNCTION refuse_row() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
                IF {condition} THEN
                    PERFORM nextval('refusals');
                    RAISE EXCEPTION 'not this one' USING ERRCODE = '{errcode}';
                END IF;
                RETURN coalesce(NEW, OLD);
            END $$;
            CREATE TRIGGER refuse {when} ON {table} FOR EACH ROW EXECUTE FUNCTION refuse_row();
            """
        )
    )
    session.commit()


def refusals(engine: Engine) -> int:
    """How often the trigger of `refuse` has raised its error."""
    with engine.connect() as connection:
        last: int = connection.scalar(text("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM refusals")) or 0
        return last


def flood(session: Session, state: str, *, rare: int, many: int) -> None:
    """Jobs of `write` that failed with KeyError, and later ones of `mark` with ValueError, in `state`, each with a run.

    Scheduled ones are to be tried again.
    """
    session.execute(
        text(
            """
            WITH made AS (
                INSERT INTO sqla_jobs (task, args, state, attempt, started_at, finished_at, run_at)
                SELECT CASE WHEN n <= :rare THEN 'write' ELSE 'mark' END, '{"n": 1}', :state, 1, at,
                    CASE WHEN :state = 'failed' THEN at END, now() + interval '1 hour' - (n * interval '1 ms')
                FROM generate_series(1, :rare + :many) AS n,
                    LATERAL (SELECT now() - interval '50 minutes' + n * interval '1 ms') AS moment (at)
                RETURNING id, task, started_at
            )
            INSERT INTO sqla_runs (job_id, attempt, outcome, error_type, error, started_at, finished_at)
            SELECT id, 1, CASE WHEN :state = 'failed' THEN 'failed' ELSE 'retried' END,
                CASE task WHEN 'write' THEN 'KeyError' ELSE 'ValueError' END, 'no', started_at, started_at FROM made
            """
        ),
        {"state": state, "rare": rare, "many": many},
    )
    session.commit()
