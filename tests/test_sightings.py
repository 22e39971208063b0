"""Who is dead, as seen by the clock of whoever looks."""

from __future__ import annotations

import logging
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
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.orm import Session

from sqla_jobs.postgres import LocalServer
from sqla_jobs.worker.sightings import Sightings
from tests import shop
from tests.counting import attempts_and_runs, states
from tests.helpers import wait_until
from tests.shop import jobs

A, B = uuid.uuid4(), uuid.uuid4()


def seen(sightings: Sightings, at: float, took: float = 0.0, **heartbeats: float) -> set[str]:
    rows = {{"a": A, "b": B}[name]: (heartbeat, 10.0) for name, heartbeat in heartbeats.items()}
    silent = sightings.silent(rows, asked_at=at, answered_at=at + took)
    assert all(rows[process_id][0] == heartbeat for process_id, heartbeat in silent.items())
    return {"a" if process_id == A else "b" for process_id in silent}


def test_a_process_is_silent_once_its_heartbeat_was_seen_unchanged_for_a_lease() -> None:
    sightings = Sightings()
    assert seen(sightings, 100, a=1, b=1) == set()
    assert seen(sightings, 109, a=1, b=2) == set()
    assert sightings.due_at == 110, "there is no point in asking before that"
    assert seen(sightings, 110, a=1, b=2) == {"a"}
    assert sightings.due_at == 119
    assert seen(sightings, 118, b=2) == set()
    assert seen(sightings, 120, a=1, b=2) == {"b"}, "what was away is seen for the first time"


def test_a_heartbeat_may_lie_anywhere_in_time() -> None:
    """The server's clock steps: what counts is whether it changes."""
    sightings = Sightings()
    for at, heartbeat in ((100, 5e9), (108, -5e9), (116, 5e9), (124, 0)):
        assert seen(sightings, at, a=heartbeat) == set()


def test_what_an_answer_took_is_not_counted_as_silence() -> None:
    sightings = Sightings()
    assert seen(sightings, 100, took=8, a=1) == set()
    assert seen(sightings, 117, took=50, a=1) == set()
    assert seen(sightings, 118, a=1) == {"a"}


def test_nothing_is_known_after_a_gap() -> None:
    sightings = Sightings()
    assert seen(sightings, 100, a=1) == set()
    sightings.forget()
    assert seen(sightings, 110, a=1) == set()
    assert seen(sightings, 120, a=1) == {"a"}


def held_by(engine: Engine) -> tuple[Any, Any]:
    with Session(engine) as session:
        row = session.execute(select(jobs.Job.process_id, jobs.Job.current_run_id)).one()
        return row[0], row[1]


def test_a_clock_that_steps_beyond_the_lease_takes_no_job_from_a_living_process(
    database: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """A step of the server's clock by an hour is, for every comparison with it, a step of what is stored."""
    caplog.set_level(logging.WARNING)
    shop.gate.clear()
    rhythm: dict[str, Any] = {"heartbeat": 0.2, "lease": 1.0, "poll": 0.1}
    with Session(database) as session:
        shop.wait.enqueue(session, n=1)
        session.commit()
    with jobs.worker({"default": 1}, **rhythm), jobs.worker({"other": 1}, **rhythm):
        wait_until(lambda: states(database) == {"running": 1})
        before = held_by(database)
        stepped = time.monotonic()
        while time.monotonic() < stepped + 3.0:
            for hours in (-1, 1):
                with database.begin() as connection:
                    step = text("UPDATE sqla_processes SET beat_at = beat_at + :hours * interval '1 hour'")
                    connection.execute(step, {"hours": hours})
        assert held_by(database) == before
        shop.gate.set()
        wait_until(lambda: states(database) == {"succeeded": 1})
    assert attempts_and_runs(database) == (1, 1)
    assert "is dead" not in caplog.text


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
        with jobs.worker({"default": 1}, **rhythm), jobs.worker({"other": 1}, **rhythm):
            wait_until(lambda: states(engine) == {"running": 1})
            before = held_by(engine)
            for seconds in (1.0, 2.0, 3.0):
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
        first = connection.scalar(text("SELECT extract(epoch FROM min(beat_at))::float8 FROM sqla_processes"))
        return first is not None and first > moment
