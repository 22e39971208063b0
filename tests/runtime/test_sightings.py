"""Jobs of the dead, and of those who are only taken for dead; who is dead is in tests/rules/test_dead_processes.py."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, delete, func, insert, select, text
from sqlalchemy.orm import Session

from sqla_jobs.postgres import LocalServer
from sqla_jobs.queries import Queries, processes
from tests import shop
from tests.counting import attempts_and_runs, states
from tests.helpers import refuse, wait_until
from tests.shop import jobs


def held_by(engine: Engine) -> tuple[Any, Any]:
    with Session(engine) as session:
        row = session.execute(select(jobs.Job.process_id, jobs.Job.current_run_id)).one()
        return row[0], row[1]


@pytest.mark.slow
def test_a_clock_that_steps_beyond_the_lease_takes_no_job_from_a_living_process(
    database: Engine,
) -> None:
    """A step of the server's clock by an hour is, for every comparison with it, a step of what is stored."""
    rhythm: dict[str, Any] = {"heartbeat": 0.2, "lease": 1.0, "poll": 0.1}
    with Session(database) as session:
        shop.wait.enqueue(session, n=1)
        session.commit()
    with jobs.worker({"default": 1}, **rhythm, clock=False), jobs.worker({"other": 1}, **rhythm, clock=False):
        wait_until(lambda: states(database) == {"running": 1})
        before = held_by(database), processes_of(database)
        stepped = time.monotonic()
        while time.monotonic() < stepped + 3.0:
            for hours in (-1, 1):
                with database.begin() as connection:
                    step = text("UPDATE sqla_processes SET heartbeat_at = heartbeat_at + :hours * interval '1 hour'")
                    connection.execute(step, {"hours": hours})
        assert (held_by(database), processes_of(database)) == before
        shop.gate.set()
        wait_until(lambda: states(database) == {"succeeded": 1})
    assert attempts_and_runs(database) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rhythm", "setting"),
    [((1.2, 3.6), "1"), ((0.2, 1.0), "0")],
    ids=["beats that fall between two looks", "numbers without their last digits"],
)
def test_the_dead_lose_their_jobs_in_every_rhythm_and_setting(
    rhythm: tuple[float, float], setting: str, database: Engine
) -> None:
    with database.begin() as connection:
        name = database.url.database
        connection.execute(text(f"ALTER DATABASE {name} SET extra_float_digits = {setting}"))
        dead = processes.register(connection, jobs._models, kind="worker", queues={}, lease=rhythm[1])
        connection.execute(insert(jobs.Job).values(task="mark", args={"n": 1}, state="queued"))
        assert Queries(jobs._models).claim(connection, dead, {"default": 1}, list(jobs.tasks))
    database.dispose()
    with jobs.worker(heartbeat=rhythm[0], lease=rhythm[1], clock=False):
        wait_until(lambda: states(database) == {"succeeded": 1})
    assert attempts_and_runs(database) == (2, 2)


def test_a_worker_that_was_taken_for_dead_registers_again_though_it_cannot_rescue_others(database: Engine) -> None:
    with Session(database) as session:
        refuse(session, "NEW.outcome = 'lost'", table="sqla_runs", when="BEFORE INSERT", errcode="57014")
        lost = {"current_run_id": 1, "process_id": uuid.uuid4(), "started_at": func.now(), "state": "running"}
        session.execute(insert(jobs.Job).values(task="mark", args={"n": 1}, **lost))
        session.commit()
        with jobs.worker(heartbeat=0.2, lease=1.0, clock=False):
            wait_until(lambda: processes_of(database))
            (before,) = processes_of(database)
            session.execute(delete(jobs.Process))
            session.commit()
            wait_until(lambda: processes_of(database) - {before})
            shop.mark.enqueue(session, n=2)
            session.commit()
            wait_until(lambda: states(database) == {"running": 1, "succeeded": 1})


def processes_of(engine: Engine) -> set[uuid.UUID]:
    with Session(engine) as session:
        return set(session.scalars(select(jobs.Process.id)))


def stat_of(pid: str) -> list[str]:
    """Its state, its parent and so on."""
    try:
        return Path("/proc", pid, "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:  # it ended meanwhile
        return ["Z", "0"]


@contextmanager
def standing_still(engine: Engine, seconds: float) -> Generator[None]:
    """The server, as a virtual machine that is paused: what was sent to it meanwhile is executed afterwards."""
    with engine.connect() as connection:
        backend = connection.scalar(text("SELECT pg_backend_pid()"))
    postmaster = stat_of(str(backend))[1]
    pids = [postmaster, *(one.name for one in Path("/proc").glob("[0-9]*") if stat_of(one.name)[1] == postmaster)]
    for pid in pids:
        os.kill(int(pid), signal.SIGSTOP)
    try:
        yield
        threading.Event().wait(seconds)
    finally:
        for pid in pids:
            os.kill(int(pid), signal.SIGCONT)


@pytest.mark.slow
def test_a_server_that_stands_still_for_longer_than_the_lease_makes_nobody_dead() -> None:
    shop.gate.clear()
    rhythm: dict[str, Any] = {"heartbeat": 0.5, "lease": 1.5, "poll": 0.1}
    with LocalServer() as server:
        engine = create_engine(server.url)
        shop.Base.metadata.create_all(engine)
        jobs.bind(engine)
        with Session(engine) as session:
            shop.wait.enqueue(session, n=1)
            session.commit()
        with jobs.worker({"default": 1}, **rhythm, clock=False), jobs.worker({"other": 1}, **rhythm, clock=False):
            wait_until(lambda: states(engine) == {"running": 1})
            before = held_by(engine)
            for seconds in (1.0, 3.0):
                with standing_still(engine, seconds):
                    engine.dispose()
                heard = now(engine)
                wait_until(lambda: have_beaten_since(engine, heard + 2.0))  # noqa: B023 - it ends before the next
                assert held_by(engine) == before
            shop.gate.set()
            wait_until(lambda: states(engine) == {"succeeded": 1})
        assert attempts_and_runs(engine) == (1, 1)
        engine.dispose()


def now(engine: Engine) -> float:
    with engine.connect() as connection:
        return float(connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())::float8")) or 0)


def have_beaten_since(engine: Engine, moment: float) -> bool:
    with engine.connect() as connection:
        first = connection.scalar(text("SELECT extract(epoch FROM min(heartbeat_at))::float8 FROM sqla_processes"))
        return first is not None and first > moment
