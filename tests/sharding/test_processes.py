"""The command line for an application whose jobs are in several databases, with real worker processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from tests.conftest import ROOT, StartWorker
from tests.counting import states
from tests.helpers import free_port, run_to_end, spawning, wait_until
from tests.proxy import Proxy
from tests.sharding import shop
from tests.sharding.shop import jobs
from tests.sharding.test_worker import effects, enqueue

pytestmark = pytest.mark.slow
APPLICATION = "tests.sharding.shop:jobs"
IMPATIENT = "tests.sharding.shop:impatient()"


def named(urls: dict[str, str]) -> list[str]:
    return [part for name, url in urls.items() for part in ("--database-url", f"{name}={url}")]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return run_to_end([sys.executable, "-m", "sqla_jobs", *words])


def alive(engine: Engine) -> int:
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(jobs.Process)) or 0


def pids(engine: Engine) -> list[int]:
    with Session(engine) as session:
        return [*session.scalars(select(jobs.Process.pid).where(jobs.Process.kind == "worker"))]


@pytest.mark.promise
def test_each_job_has_one_effect_though_processes_are_killed(
    urls: dict[str, str], engines: dict[str, Engine], start_worker: StartWorker
) -> None:
    for engine in engines.values():
        with Session(engine) as session:
            shop.write.enqueue_many(session, ({"n": n, "seconds": 0.01} for n in range(300)))
            session.commit()
    worker = start_worker(None, *named(urls), "--processes", "2", "--queues", "default=4", application=APPLICATION)
    for count, name in ((100, "eu"), (300, "us")):
        wait_until(partial(has_effects, engines, count))
        victim = pids(engines[name])[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda victim=victim, name=name: victim not in pids(engines[name]))  # type: ignore[misc]
    killed_at = time.monotonic()
    wait_until(lambda: all(states(engine) == {"succeeded": 300} for engine in engines.values()))
    assert time.monotonic() - killed_at < 20
    for name, engine in engines.items():
        assert effects(engine) == [(n, name) for n in range(300)]
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    assert [alive(engine) for engine in engines.values()] == [0, 0, 0]


def has_effects(engines: dict[str, Engine], more_than: int) -> bool:
    return sum(len(effects(engine)) for engine in engines.values()) > more_than


def test_a_database_that_is_away_delays_only_its_own_jobs(
    urls: dict[str, str], engines: dict[str, Engine], start_worker: StartWorker, tmp_path: Path
) -> None:
    address, log = engines["us"].url, tmp_path / "worker-0.log"
    for engine in engines.values():
        enqueue(engine, 3)
    with Proxy(("127.0.0.1", 1)) as proxy:
        through = address.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        port = free_port()
        there = named({"us": through} | {name: urls[name] for name in ("eu", "as")})  # the first one is away
        worker = start_worker(None, *there, "--metrics-port", str(port), application=IMPATIENT)
        wait_until(lambda: states(engines["eu"]) == states(engines["as"]) == {"succeeded": 3})
        wait_until(lambda: log.read_text().count("[us] no host accepts writes now") > 1, message="it is tried again")
        assert answered(port, "readyz") == 200, "the others are served"
        proxy.target = (str(address.host), int(address.port or 5432))
        wait_until(lambda: states(engines["us"]) == {"succeeded": 3})
        proxy.stall()
        proxy.cut()
        for engine in engines.values():
            enqueue(engine, 50)
        wait_until(lambda: states(engines["eu"]) == states(engines["as"]) == {"succeeded": 53})
        assert answered(port, "readyz") == 200
        proxy.go_on()
        wait_until(lambda: states(engines["us"]) == {"succeeded": 53})
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0


def test_a_reload_adds_and_removes_databases(
    urls: dict[str, str],
    engines: dict[str, Engine],
    start_worker: StartWorker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shards = tmp_path / "shards.json"
    monkeypatch.setenv("SHARDS", str(shards))
    shards.write_text(json.dumps(urls))
    worker = start_worker(None, application="tests.sharding.shop:bound()")
    wait_until(lambda: [alive(engine) for engine in engines.values()] == [1, 1, 1])
    before = pids(engines["eu"])
    shards.write_text(json.dumps({"eu": urls["eu"], "us": urls["us"]}))
    worker.send_signal(signal.SIGHUP)
    wait_until(lambda: connections(engines["as"]) == 0, message="a database that is not served is left")
    wait_until(lambda: len(pids(engines["eu"])) == 1 and pids(engines["eu"]) != before)
    shards.write_text(json.dumps(urls | {"uk": urls["us"]}))  # the last one is refused
    worker.send_signal(signal.SIGHUP)
    for engine in engines.values():
        enqueue(engine, 1)
        wait_until(partial(has_succeeded, engine))
    wait_until(lambda: "Error: [uk] this is the database 'us' again" in (tmp_path / "worker-0.log").read_text())
    assert worker.poll() is None


def connections(engine: Engine) -> int:
    """The number of connections of others to this database."""
    others = "datname = current_database() AND pid <> pg_backend_pid()"
    with Session(engine) as session:
        return session.scalar(text(f"SELECT count(*) FROM pg_stat_activity WHERE {others}")) or 0


def has_succeeded(engine: Engine) -> bool:
    return states(engine) == {"succeeded": 1}


def test_commands_work_in_one_database_or_in_each(urls: dict[str, str], engines: dict[str, Engine]) -> None:
    enqueue(engines["us"], 1)
    done = run("status", APPLICATION, *named(urls))
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("==")] == ["== eu ==", "== us ==", "== as =="]
    asked = run("list", APPLICATION, *named(urls))
    assert (asked.returncode, "--shard" in asked.stderr) == (1, True)
    assert "nap" in run("list", APPLICATION, *named(urls), "--shard", "us").stdout
    assert "nap" not in run("list", APPLICATION, *named(urls), "--shard", "eu").stdout
    unknown = run("list", APPLICATION, *named(urls), "--shard", "uk")
    assert (unknown.returncode, "'uk'" in unknown.stderr) == (1, True)
    assert run("list", APPLICATION, "--database-url", "eu=" + urls["eu"], "--database-url", urls["us"]).returncode == 2
    drained = run("worker", APPLICATION, *named(urls), "--drain")
    assert (drained.returncode, drained.stdout) == (0, "1 run\n"), drained.stderr


def test_a_worker_that_cannot_begin_in_each_database_ends(urls: dict[str, str], engines: dict[str, Engine]) -> None:
    with engines["us"].begin() as connection:
        connection.execute(text("COMMENT ON TABLE sqla_jobs IS 'sqla_jobs schema 1'"))
    for command in (("worker", "--no-clock"), ("worker", "--clock-only")):
        done = run(*command, "--app", APPLICATION, *named(urls))
        assert (done.returncode, "Error: [us] the tables are of version 1" in done.stderr) == (1, True), done.stderr
    assert [alive(engine) for engine in engines.values()] == [0, 0, 0]


def test_a_clock_waits_for_a_database_while_the_others_have_theirs(
    urls: dict[str, str], engines: dict[str, Engine], tmp_path: Path
) -> None:
    address = engines["us"].url
    for engine in engines.values():
        with Session(engine) as session:
            session.add(jobs.Schedule(name="often", task=shop.nap.name, cron="* * * * * *"))
            session.commit()
    with Proxy(("127.0.0.1", 1)) as proxy, spawning() as spawn:
        through = address.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        command = [sys.executable, "-m", "sqla_jobs.clock", APPLICATION, *named({"us": through, "eu": urls["eu"]})]
        clock = spawn(command, ROOT, tmp_path / "clock.log")
        wait_until(lambda: states(engines["eu"]))
        proxy.target = (str(address.host), int(address.port or 5432))
        wait_until(lambda: states(engines["us"]))
        clock.send_signal(signal.SIGTERM)
        assert clock.wait(20) == 0
        assert "[us] no host accepts writes now" in (tmp_path / "clock.log").read_text()


def test_migrating_goes_on_after_a_database_that_fails(urls: dict[str, str], engines: dict[str, Engine]) -> None:
    with engines["eu"].begin() as connection:
        connection.execute(text("DROP TABLE effects"))
        connection.execute(text("DROP SCHEMA public CASCADE"))
    with engines["as"].begin() as connection:
        connection.execute(text("DROP TABLE effects"))
        connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    done = run("migrate", APPLICATION, *named(urls))
    assert done.returncode == 1
    assert "== eu ==" in done.stdout
    assert states(engines["as"]) == {}


def test_metrics_name_the_database(urls: dict[str, str], engines: dict[str, Engine], start_worker: StartWorker) -> None:
    with Session(engines["us"]) as session:
        shop.nap.options(queue="unserved").enqueue(session)
        session.commit()
    with Proxy(("127.0.0.1", 1)) as proxy:
        away = engines["as"].url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        port = free_port()
        there = {**urls, "as": away}
        start_worker(None, *named(there), "--metrics-port", str(port), application=APPLICATION)
        wait_until(lambda: 'sqla_jobs_database_up{shard="us"} 1.0' in scraped(port))
        text = scraped(port)
        assert 'sqla_jobs_queue_jobs{queue="unserved",shard="us",state="queued"} 1.0' in text
        assert 'sqla_jobs_database_up{shard="as"} 0.0' in text


def answered(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}") as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        print(error.read())
        return error.code


def scraped(port: int) -> str:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        return str(answer.read().decode())
    return ""
