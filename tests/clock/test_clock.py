"""Schedules and the clock: each tick once, whatever happens, and operators have the last word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, insert, select, text, update
from sqlalchemy.orm import Session

from sqla_jobs import Jobs
from sqla_jobs.clock import Clock
from sqla_jobs.clock.catch_up import ticks_due
from sqla_jobs.clock.sync import sync
from sqla_jobs.cron import Cron, every
from sqla_jobs.errors import ArgumentsError, ConfigurationError, DeclarationError
from sqla_jobs.models.types import CatchUp
from tests.helpers import new_jobs, refuse, spawning, wait_until


def deployed() -> Jobs[Any]:
    """New ones for each test: what code declares differs."""
    jobs = new_jobs()

    @jobs.task(max_attempts=7, queue="mail", priority=3, name="report")
    def report(kind: str = "daily") -> None: ...

    return jobs


@pytest.fixture
def application() -> Jobs[Any]:
    return deployed()


@pytest.fixture
def jobs(application: Jobs[Any], database: Engine) -> Jobs[Any]:
    return application


def enqueued(session: Session, jobs: Jobs[Any]) -> list[Any]:
    session.commit()
    return list(session.scalars(select(jobs.Job).order_by(jobs.Job.scheduled_for)))


def make_due(session: Session, jobs: Jobs[Any], ago: float = 0.0) -> None:
    """As if the clock had last looked that many seconds ago."""
    then = func.clock_timestamp() - timedelta(seconds=ago)
    session.execute(update(jobs.Schedule).values(next_run_at=then))
    session.commit()


def only(session: Session, jobs: Jobs[Any]) -> Any:
    session.commit()
    return session.scalars(select(jobs.Schedule).execution_options(populate_existing=True)).one()


# declaring


@pytest.mark.slow
def test_a_declared_schedule_becomes_a_row_and_its_ticks_jobs(session: Session, jobs: Jobs[Any]) -> None:
    jobs.tasks["report"].schedule(
        "0 3 * * *", name="nightly", timezone="Europe/Paris", args={"kind": "full"}, jitter=60
    )
    clock = jobs.clock()
    assert clock.tick() == 0
    row = only(session, jobs)
    told = (row.name, row.task, row.cron, row.timezone, row.args)
    assert told == ("nightly", "report", "0 3 * * *", "Europe/Paris", {"kind": "full"})
    assert row.next_run_at == Cron.parse("0 3 * * *", "Europe/Paris").next_after(datetime.now(UTC))
    make_due(session, jobs)
    tick = only(session, jobs).next_run_at
    assert clock.tick() == 1
    (job,) = enqueued(session, jobs)
    assert (job.queue, job.priority, job.max_attempts, job.args) == ("mail", 3, 7, {"kind": "full"})
    assert (job.schedule_id, job.scheduled_for) == (row.id, tick)
    assert timedelta(0) <= job.run_at - tick <= timedelta(seconds=60)
    assert only(session, jobs).last_run_at == tick
    assert clock.tick() == 0


@pytest.mark.parametrize(
    ("cron", "options", "named"),
    [
        ("61 * * * *", {}, "'61'"),
        ("@daily", {"timezone": "Mars"}, "Mars"),
        ("@daily", {"args": {"sort": "x"}}, "'sort'"),
        ("@daily", {"name": ""}, "name"),
        ("@daily", {"queue": "a,b"}, "'a,b'"),
        ("@daily", {"priority": 11}, r"report \(.*\.py:\d+\)\): priority .* got 11"),
        ("@daily", {"enabled": "no"}, "'no'"),
        ("@daily", {"args": 3}, "args .* got 3"),
        ("@daily", {"catch_up": "some"}, "'some'"),
        ("@daily", {"overlap": "never"}, "'never'"),
        ("@daily", {"jitter": -1}, "-1"),
        ("@daily", {"retries": 3}, "'retries'"),
    ],
)
def test_what_cannot_be_scheduled_is_refused_where_it_is_declared(
    jobs: Jobs[Any], cron: str, options: dict[str, Any], named: str
) -> None:
    with pytest.raises((ConfigurationError, ArgumentsError, DeclarationError), match=named):
        jobs.tasks["report"].schedule(cron, **options)
    assert dict(jobs.schedules) == {}


# code and operators


def test_what_an_operator_set_stays_and_what_code_changed_follows(
    session: Session, jobs: Jobs[Any], engine: Engine
) -> None:
    report = jobs.tasks["report"]
    report.schedule("0 3 * * *", name="nightly")
    jobs.clock().tick()
    row = only(session, jobs)
    row.cron, row.enabled, row.disabled_reason = "0 5 * * *", False, "the printer is broken"
    session.commit()
    after = deployed()
    after.bind(engine)
    after.tasks["report"].schedule("0 4 * * *", name="nightly", priority=7, timezone="Asia/Tokyo")
    after.clock().tick()
    row = only(session, jobs)
    assert (row.cron, row.enabled, row.disabled_reason) == ("0 5 * * *", False, "the printer is broken")
    assert (row.priority, row.timezone) == (7, "Asia/Tokyo")
    sync(session, after._models, after.schedules, reset=True)
    row = only(session, jobs)
    assert (row.cron, row.enabled) == ("0 4 * * *", True)


def test_what_no_code_declares_is_disabled_after_a_day_says_why_and_comes_back(
    session: Session, jobs: Jobs[Any], engine: Engine
) -> None:
    jobs.tasks["report"].schedule("0 3 * * *", name="nightly")
    jobs.clock().tick()
    session.add(jobs.Schedule(name="an operator's", task="report", cron="@daily"))
    session.commit()
    without = deployed()
    without.bind(engine)
    without.clock().tick()
    enabled = select(jobs.Schedule.enabled).where(jobs.Schedule.name == "nightly")
    assert session.scalar(enabled) is True
    session.execute(update(jobs.Schedule).values(declared_at=func.now() - timedelta(hours=25)))
    session.commit()
    without.clock().tick()
    row = session.scalars(select(jobs.Schedule).where(jobs.Schedule.name == "nightly")).one()
    session.refresh(row)
    assert not row.enabled
    assert "no code declares it any more" in (row.disabled_reason or "")
    assert session.scalar(select(jobs.Schedule.enabled).where(jobs.Schedule.name == "an operator's"))
    jobs.clock().tick()
    session.commit()
    session.refresh(row)
    assert (row.enabled, row.disabled_reason, row.retired_at) == (True, None, None)


@pytest.mark.slow
def test_an_operators_rule_that_is_wrong_is_disabled_and_says_why(session: Session, jobs: Jobs[Any]) -> None:
    session.add(jobs.Schedule(name="bad", task="report", cron="61 * * * *"))
    session.add(jobs.Schedule(name="good", task="report", cron="* * * * * *"))
    session.commit()
    clock = jobs.clock()
    clock.tick()
    wait_until(clock.tick)
    bad = session.scalars(select(jobs.Schedule).where(jobs.Schedule.name == "bad")).one()
    assert not bad.enabled
    assert "'61' is not a valid minute" in (bad.disabled_reason or "")
    bad.cron, bad.enabled = "@daily", True
    session.commit()
    clock.tick()
    session.refresh(bad)
    assert bad.next_run_at is not None


# catching up


NOW = datetime(2026, 11, 25, 12, 0, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("cron", "down_for", "catch_up", "fired", "missed"),
    [
        ("0 * * * *", 3 * 3600, "latest", ["12:00:00"], ("25 10:00:00", "25 11:00:00", 2)),
        ("0 * * * *", 3 * 3600, "all", ["10:00:00", "11:00:00", "12:00:00"], None),
        ("0 * * * *", 3 * 3600, "skip", ["12:00:00"], ("25 10:00:00", "25 11:00:00", 2)),
        ("30 * * * *", 3 * 3600, "latest", ["11:30:00"], ("25 09:30:00", "25 10:30:00", 2)),
        ("30 * * * *", 3 * 3600, "skip", [], ("25 09:30:00", "25 11:30:00", 3)),
        ("30 * * * *", 3600, "skip", [], ("25 11:30:00", "25 11:30:00", 1)),
        ("* * * * *", 7 * 86400, "latest", ["12:00:00"], ("18 12:01:00", "25 11:59:00", None)),
        ("* * * * *", 3 * 3600, "all", 100, ("25 09:01:00", "25 10:20:00", 80)),
        ("* * * * * *", 3 * 86400, "all", 100, ("22 12:00:11", "25 11:58:30", None)),
        ("0 0 1 1 *", 3 * 365 * 86400, "all", ["00:00:00"] * 3, None),
    ],
)
def test_which_ticks_of_a_downtime_are_fired_and_which_are_told_to_be_missed(
    cron: str, down_for: int, catch_up: str, fired: list[str] | int, missed: tuple[str, str, int | None] | None
) -> None:
    rule = Cron.parse(cron)
    due = ticks_due(rule, rule.next_after(NOW - timedelta(seconds=down_for)), NOW, CatchUp(catch_up))
    moments = [f"{tick:%H:%M:%S}" for tick in due.fired]
    assert fired == (len(moments) if isinstance(fired, int) else moments)
    told = due.missed
    assert (told and (f"{told.first:%d %H:%M:%S}", f"{told.last:%d %H:%M:%S}", told.count)) == missed
    assert due.upcoming == rule.next_after(NOW)


def test_what_was_disabled_catches_up_on_nothing(session: Session, jobs: Jobs[Any]) -> None:
    jobs.tasks["report"].schedule("@hourly")
    clock = jobs.clock()
    clock.tick()
    only(session, jobs).enabled = False
    session.commit()
    clock.tick()
    assert only(session, jobs).next_run_at is None
    only(session, jobs).enabled = True
    session.commit()
    assert clock.tick() == 0
    assert only(session, jobs).next_run_at > datetime.now(UTC)


def test_overlap_skip_passes_over_ticks_while_a_job_has_not_ended(session: Session, jobs: Jobs[Any]) -> None:
    jobs.tasks["report"].schedule(every(seconds=1), overlap="skip")
    clock = jobs.clock()
    clock.tick()
    wait_until(clock.tick)
    make_due(session, jobs, 5)
    assert clock.tick() == 0
    session.execute(update(jobs.Job).values(state="scheduled"))  # waits for another attempt
    make_due(session, jobs, 5)
    assert clock.tick() == 0
    session.execute(update(jobs.Job).values(state="succeeded", scheduled_for=func.now() - timedelta(hours=1)))
    make_due(session, jobs, 5)
    assert clock.tick() == 1


# exactly once


def test_clocks_at_once_share_the_work(session: Session, jobs: Jobs[Any]) -> None:
    session.execute(
        insert(jobs.Schedule), [{"name": f"s{n}", "task": "report", "cron": "@daily", "queue": "q"} for n in range(300)]
    )
    session.commit()
    clocks = [jobs.clock() for _ in range(3)]
    for clock in clocks:
        clock.tick()
    session.execute(update(jobs.Schedule).values(next_run_at=func.date_trunc("day", func.now())))
    session.commit()
    with ThreadPoolExecutor() as pool:
        fired = list(pool.map(Clock.tick, clocks))
    assert sum(fired) == 300
    assert len(enqueued(session, jobs)) == 300


APP = """
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase
from sqla_jobs import Jobs
from sqla_jobs.cron import every

class Base(DeclarativeBase): ...

jobs = Jobs(Base, bind=create_engine({url!r}))

@jobs.task
def tick() -> None: ...

tick.schedule(every(seconds=1), name="each second", catch_up="all")
"""


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path, engine: Engine, database_url: str) -> Iterator[Start]:
    """Starts a module of sqla_jobs on the application, which is killed at the end."""
    app, log = tmp_path / "app.py", tmp_path / "log"
    app.write_text(APP.format(url=database_url))
    program = "import app; app.Base.metadata.create_all(app.jobs._binding().engine)"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=60)
    with spawning() as spawn:
        yield lambda module, *options: spawn([sys.executable, "-m", module, "app:jobs", *options], tmp_path, log)


@pytest.fixture
def ask(engine: Engine) -> Iterator[Callable[..., Any]]:
    """The first value of a query, as committed now."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield lambda query, **values: connection.scalar(text(query), values)


def test_a_worker_inside_a_program_fires_schedules_unless_told_otherwise(session: Session, jobs: Jobs[Any]) -> None:
    jobs.tasks["report"].schedule("* * * * *")
    jobs.clock().tick()
    make_due(session, jobs)
    with jobs.worker(["mail"]):
        kinds = select(jobs.Process.kind)
        assert set(session.scalars(kinds)) == {"worker", "clock"}
        wait_until(lambda: [job.state for job in enqueued(session, jobs)] == ["succeeded"])
    assert session.scalars(kinds).all() == []
    make_due(session, jobs)
    assert jobs.worker(["mail"]).drain() == 0
    with jobs.worker(["mail"], clock=False):
        assert set(session.scalars(kinds)) == {"worker"}
    assert len(enqueued(session, jobs)) == 1


@pytest.mark.slow
@pytest.mark.promise("Each tick of a schedule enqueues once")
def test_three_clocks_with_kills_fire_each_second_once(start: Start, engine: Engine, ask: Callable[..., Any]) -> None:
    options = ("--heartbeat", "0.5", "--lease", "2")
    clocks = [start("sqla_jobs.clock", *options) for _ in range(3)]

    def fired(count: int) -> bool:
        return bool(ask("SELECT count(*) FROM sqla_jobs") >= count)

    for count in (2, 4, 6):
        wait_until(partial(fired, count))
        victim = clocks.pop(0)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        clocks.append(start("sqla_jobs.clock", *options))
    live, pids = "SELECT count(*) FROM sqla_processes WHERE pid = ANY (:pids)", [clock.pid for clock in clocks]
    wait_until(lambda: fired(8) and ask(live, pids=pids) == 3)
    for clock in clocks:
        clock.send_signal(signal.SIGTERM)
    assert [clock.wait(20) for clock in clocks] == [0, 0, 0]
    of = "min(scheduled_for), max(scheduled_for)"
    ticks = text(f"SELECT count(*), count(DISTINCT scheduled_for), {of} FROM sqla_jobs")
    traces = text("SELECT outcome, sum(count), count(DISTINCT job_id) FROM sqla_ticks GROUP BY 1")
    with engine.connect() as connection:
        count, distinct, first, last = connection.execute(ticks).one()
        assert count == distinct == (last - first).total_seconds() + 1
        assert connection.execute(traces).all() == [("enqueued", count, count)]


@pytest.mark.slow
def test_a_worker_runs_a_clock_unless_told_otherwise(start: Start, ask: Callable[..., Any]) -> None:
    kinds = "SELECT string_agg(kind, ' ' ORDER BY kind) FROM sqla_processes"
    worker = start("sqla_jobs.worker", "--processes", "2")
    wait_until(lambda: ask("SELECT count(*) FROM sqla_jobs WHERE state = 'succeeded'") >= 2)
    wait_until(lambda: ask(kinds) == "clock worker worker")
    os.killpg(worker.pid, signal.SIGTERM)
    assert worker.wait(20) == 0
    assert ask(kinds) is None
    start("sqla_jobs.worker", "--no-clock")
    wait_until(lambda: ask(kinds))
    assert ask(kinds) == "worker"


@pytest.mark.slow
def test_a_schedule_that_somebody_holds_locked_stops_neither_workers_nor_other_schedules(
    start: Start, tmp_path: Path, engine: Engine, ask: Callable[..., Any]
) -> None:
    """Also of a worker that starts meanwhile, whose code declares the schedule."""
    with (tmp_path / "app.py").open("a") as app:
        app.write("\n@jobs.task\ndef tock() -> None: ...\n\ntock.schedule(every(seconds=1))\n")

    def runs_of(task: str) -> int:
        return int(ask("SELECT count(*) FROM sqla_jobs WHERE state = 'succeeded' AND task = :task", task=task))

    worker = start("sqla_jobs.worker")
    wait_until(lambda: runs_of("tick") and runs_of("tock"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE sqla_schedules SET priority = 1 WHERE name = 'each second'"))
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0
        before = runs_of("tock")
        start("sqla_jobs.worker")
        wait_until(lambda: runs_of("tock") >= before + 3)
        before = runs_of("tick")
    wait_until(lambda: runs_of("tick") >= before + 2)


# time


def test_the_clock_of_the_host_decides_nothing(
    session: Session, jobs: Jobs[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host two hours ahead: the clock asks the server, whose word is replaced by nothing of ours."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(hours=2)

    monkeypatch.setattr("sqla_jobs.cron.datetime", Ahead)
    monkeypatch.setattr("time.time", lambda: time.monotonic() + 10**9)
    jobs.tasks["report"].schedule(every(hours=1))
    clock = jobs.clock()
    clock.tick()
    now = session.scalars(select(func.now())).one()
    assert now < only(session, jobs).next_run_at <= now + timedelta(hours=1)
    assert clock.tick() == 0


@pytest.mark.slow
def test_a_server_whose_clock_steps_back_fires_nothing_twice(session: Session, jobs: Jobs[Any]) -> None:
    """Ticks fired already lie ahead of it then; they are not fired again."""
    jobs.tasks["report"].schedule(every(seconds=10), catch_up="all")
    clock = jobs.clock()
    clock.tick()
    future = func.to_timestamp(func.floor(func.extract("epoch", func.now()) / 10) * 10) + timedelta(seconds=60)
    session.execute(update(jobs.Schedule).values(next_run_at=future))
    session.commit()
    assert clock.tick() == 0
    assert only(session, jobs).next_run_at > datetime.now(UTC)


@pytest.mark.slow
def test_a_running_clock_follows_a_change_at_once_and_in_time_one_it_was_not_told_of(
    session: Session, jobs: Jobs[Any]
) -> None:
    jobs.tasks["report"].schedule("@yearly", name="one")
    with jobs.clock():
        wait_until(lambda: only(session, jobs).next_run_at is not None)
        only(session, jobs).cron = "* * * * * *"
        session.commit()
        wait_until(lambda: enqueued(session, jobs), timeout=2.5)
        session.execute(text("UPDATE sqla_schedules SET enabled = false"))  # nobody is told
        session.commit()
        wait_until(lambda: only(session, jobs).next_run_at is None, timeout=3)


def test_a_schedule_that_cannot_be_fired_holds_up_no_others(jobs: Jobs[Any], session: Session) -> None:
    for number in range(20):
        session.add(jobs.Schedule(name=f"s{number}", task="report", cron="* * * * *", queue=f"q{number}"))
    refuse(session, "NEW.queue = 'q7'", when="BEFORE INSERT")
    clock = jobs.clock()
    clock.tick()
    session.execute(text("UPDATE sqla_schedules SET next_run_at = now() - interval '1 second'"))
    session.commit()
    assert clock.tick() == 19
    assert session.scalar(select(func.count()).where(jobs.Job.queue == "q7")) == 0
    enabled = select(func.count()).where(jobs.Schedule.enabled)
    assert session.scalar(enabled) == 20, "it is tried again"
