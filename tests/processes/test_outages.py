"""Workers and commands while no host accepts writes, and right afterwards."""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, make_url, text
from sqlalchemy.orm import Session

from sqla_jobs.cli.main import main
from sqla_jobs.postgres import LocalServer
from tests import shop
from tests.conftest import StartWorker
from tests.counting import engine_on, states, tried
from tests.helpers import free_port, wait_until
from tests.processes.standby import Pair, replicated

pytestmark = pytest.mark.slow


def run_one(engine: Engine, n: int, *, timeout: float = 40.0) -> float:
    """Enqueue a job, and return how many seconds later it has succeeded."""
    with Session(engine) as session:
        shop.write.enqueue(session, n=n)
        session.commit()
    began = time.monotonic()
    wait_until(lambda: tried(lambda: states(engine) == {"succeeded": n + 1}), timeout=timeout)
    return time.monotonic() - began


def start(pair: Pair, start_worker: StartWorker, *options: str) -> None:
    """Start a worker with a parent, and let it run a job."""
    with engine_on(pair.primary.url) as engine:
        shop.Base.metadata.create_all(engine)
        start_worker(pair.url.replace("connect_timeout=5", "connect_timeout=2"), *options)
        run_one(engine, 0)


def told(log: Path, what: str) -> dict[tuple[str, str], datetime]:
    """Return when each loop of each process has said this last."""
    lines = re.findall(rf"(?m)^(\S+ \S+) (\d+) \w+ sqla_jobs.worker (.*?) {what}", log.read_text())
    return {(pid, loop): datetime.fromisoformat(at.replace(",", ".")) for at, pid, loop in lines}


def test_after_an_outage_all_loops_of_a_parent_and_its_child_go_on_as_soon_as_one_does(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    log = tmp_path / "worker-0.log"
    with replicated(synchronous=True) as pair:
        start(pair, start_worker, "--heartbeat", "5", "--lease", "60")
        pair.primary.crash()
        wait_until(lambda: len({pid for pid, _ in told(log, "failed, and is tried again")}) == 2)
        since = time.monotonic()
        wait_until(lambda: time.monotonic() - since > 8)  # then the pauses have become as long as they may
        failed = told(log, "failed, and is tried again")
        pair.promote()
        wait_until(lambda: failed.keys() <= told(log, "works again").keys())
        recovered = [at for loop, at in told(log, "works again").items() if loop in failed]
        assert max(recovered) - min(recovered) < timedelta(seconds=2)
        with engine_on(pair.standby.url) as engine:
            run_one(engine, 1)


def test_a_frozen_first_host_keeps_no_worker_away(start_worker: StartWorker) -> None:
    with replicated() as pair:
        start(pair, start_worker, "--heartbeat", "1", "--lease", "12", "--poll", "1")
        with pair.primary_frozen():
            pair.promote()
            with engine_on(pair.standby.url) as engine:
                run_one(engine, 1)


def test_status_and_doctor_say_that_no_host_accepts_writes_and_since_when() -> None:
    with replicated(synchronous=True) as pair:
        with engine_on(pair.primary.url) as engine:
            shop.Base.metadata.create_all(engine)
        with engine_on(pair.standby.url) as engine, engine.connect() as connection:
            wait_until(lambda: connection.scalar(text("SELECT pg_last_xact_replay_timestamp()")))
        pair.primary.crash()
        for command in ("status", "doctor"):
            told = CliRunner().invoke(main, [command, "tests.shop:jobs", "--database-url", pair.url])
            assert (told.exit_code, "no host accepts writes" in told.output, " ago" in told.output) == (1, True, True)


@pytest.mark.parametrize("options", [(), ("--drain",)], ids=["worker", "drain"])
def test_a_worker_that_starts_while_the_server_is_away_waits_for_it(
    options: tuple[str, ...], start_worker: StartWorker, tmp_path: Path
) -> None:
    with LocalServer() as server, engine_on(server.url) as engine:
        shop.Base.metadata.create_all(engine)
        with Session(engine) as session:
            shop.write.enqueue(session, n=1)
            session.commit()
        engine.dispose()
        server.stop()
        worker = start_worker(server.url, *options)
        wait_until(lambda: "no host accepts writes" in (tmp_path / "worker-0.log").read_text())
        assert worker.poll() is None
        server.start()
        wait_until(lambda: tried(lambda: states(engine) == {"succeeded": 1}))


@pytest.mark.parametrize("wrong", ["password", "tables"])
def test_what_only_a_person_can_mend_ends_a_worker_at_once(wrong: str, start_worker: StartWorker) -> None:
    with LocalServer() as server:
        url = server.url
        if wrong == "password":  # for which another host, which is away, is no remedy
            one = make_url(url).set(password="wrong", host=None, port=None)
            hosts = f"host=127.0.0.1:{free_port()}&host=127.0.0.1:{server.port}"
            url = f"{one.render_as_string(hide_password=False)}?{hosts}"
        began = time.monotonic()
        assert start_worker(url).wait(40) == 1
        assert time.monotonic() - began < 30
