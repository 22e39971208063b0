"""What an application's own registry tells of the database, and of workers in the same process."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import DeclarativeBase, Session

import sqla_jobs.prometheus
from sqla_jobs import Jobs
from tests import limited_shop, shop
from tests.helpers import wait_until
from tests.prometheus.conftest import Samples, end_of, parsed
from tests.shop import jobs


@pytest.fixture(autouse=True)
def new_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests run workers of the same jobs in this process."""
    monkeypatch.setattr(jobs, "_counters", type(jobs._counters)())


def registry(of: Jobs[Any]) -> CollectorRegistry:
    found = CollectorRegistry(auto_describe=True)
    found.register(sqla_jobs.prometheus.collector(of))
    return found


def scrape(of: CollectorRegistry) -> Samples:
    return parsed(generate_latest(of).decode())


@contextmanager
def statements(engine: Engine) -> Generator[list[str]]:
    """What is sent inside the block."""
    sent: list[str] = []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield sent
    event.remove(engine, "before_cursor_execute", note)


def test_queues_and_tasks_are_counted_by_state(session: Session) -> None:
    shop.mark.options(queue="mail").enqueue_many(session, ({"n": n} for n in range(3)))
    shop.mark.options(queue="mail", delay=60).enqueue(session, n=4)
    shop.write.enqueue(session, n=1)
    session.flush()
    session.execute(
        text("UPDATE sqla_jobs SET run_at = now() - interval '90 s' WHERE state = 'queued' AND task = 'mark'")
    )
    jobs.pause(session, "mail")
    shop.misbehave.options(queue="other").enqueue(session, how="base-exception")
    session.commit()
    jobs.worker(["other"]).drain()
    found = scrape(registry(jobs))
    assert found["sqla_jobs_database_up",] == 1
    of_mail = {key[2]: value for key, value in found.items() if key[:2] == ("sqla_jobs_queue_jobs", "mail")}
    assert of_mail == {"queued": 3, "scheduled": 1, "blocked": 0, "running": 0, "claimed": 0}
    assert 90 <= found["sqla_jobs_queue_oldest_wait_seconds", "mail"] < 150
    assert found["sqla_jobs_queue_oldest_wait_seconds", "default"] < 60
    paused = {key[1]: value for key, value in found.items() if key[0] == "sqla_jobs_queue_paused"}
    assert paused == {"default": 0, "mail": 1}
    of_tasks = {key[1:]: value for key, value in found.items() if key[0] == "sqla_jobs_task_jobs"}
    assert of_tasks == {
        ("queued", "mark"): 3,
        ("scheduled", "mark"): 1,
        ("queued", "write"): 1,
        ("failed", "misbehave"): 1,
    }


def test_processes_are_counted_by_kind_and_whether_they_live(session: Session) -> None:
    seen = registry(jobs)
    with jobs.worker(heartbeat=0.1, lease=0.5, clock=False), jobs.clock():
        session.add(jobs.Process(kind="worker", heartbeat_at=text("now() - interval '1 h'"), lease=1800))
        session.commit()
        found = scrape(seen)
    of = {key[1:]: value for key, value in found.items() if key[0] == "sqla_jobs_processes"}
    assert of == {("worker", "alive"): 1, ("clock", "alive"): 1, ("worker", "dead"): 1, ("clock", "dead"): 0}
    assert 0 <= found["sqla_jobs_heartbeat_age_seconds", "worker"] < 60


def test_workers_of_this_process_are_counted_by_task_and_outcome(session: Session) -> None:
    seen = registry(jobs)
    shop.mark.enqueue_many(session, ({"n": n} for n in range(5)))
    shop.write.enqueue(session, n=1)
    shop.write.enqueue(session, n=2, seconds=0.03)
    shop.flaky.enqueue(session, good_from=2)
    shop.give_up.enqueue(session, n=1)
    shop.misbehave.enqueue(session, how="base-exception")
    session.flush()
    session.execute(text("UPDATE sqla_jobs SET run_at = now() - interval '20 s' WHERE task = 'write'"))
    session.commit()
    jobs.worker(heartbeat=0.05, lease=5).drain()
    found = scrape(seen)
    assert ended(found) == {
        ("succeeded", "mark"): 5,
        ("succeeded", "write"): 2,
        ("retried", "flaky"): 1,
        ("succeeded", "flaky"): 1,
        ("cancelled", "give_up"): 1,
        ("failed", "misbehave"): 1,
    }
    started = {key[2]: value for key, value in found.items() if key[0] == "sqla_jobs_runs_started_total" and value}
    assert started == {"mark": 5, "write": 2, "flaky": 2, "give_up": 1, "misbehave": 1}
    assert found["sqla_jobs_claimed_jobs_total",] == 11
    assert 1 <= found["sqla_jobs_claims_total",] <= 11
    assert (
        found["sqla_jobs_run_seconds_count", "default", "write"],
        found["sqla_jobs_wait_seconds_count", "default", "write"],
    ) == (2, 2)
    assert 0.03 <= found["sqla_jobs_run_seconds_sum", "default", "write"] < 5
    assert 40 <= found["sqla_jobs_wait_seconds_sum", "default", "write"] < 100


@pytest.mark.parametrize(("number", "shown"), [(100, 100), (101, 0)])
def test_tasks_of_a_worker_begin_with_0_if_all_have_labels(database: Engine, number: int, shown: int) -> None:
    of_many = Jobs(type("Base", (DeclarativeBase,), {}), bind=database)

    def nothing() -> None: ...

    for n in range(number):
        of_many.task(name=f"task{n}", aliases=[f"former{n}"])(nothing)
    seen = registry(of_many)
    of_many.worker().drain()
    found = scrape(seen)
    for name in ("sqla_jobs_runs_started_total", "sqla_jobs_run_seconds_count", "sqla_jobs_wait_seconds_count"):
        assert [value for key, value in found.items() if key[0] == name] == [0] * shown
    assert len([key for key in found if key[0] == "sqla_jobs_runs_ended_total"]) == 6 * shown


def ended(found: Samples) -> Samples:
    """By outcome and task, those of which there are any."""
    return {(key[1], key[3]): value for key, value in found.items() if key[0] == "sqla_jobs_runs_ended_total" and value}


@pytest.mark.slow
def test_a_run_that_was_taken_back_from_a_living_process_is_counted_once(session: Session, database: Engine) -> None:
    seen = registry(jobs)
    shop.wait.enqueue(session, n=1)
    session.commit()
    with jobs.worker(heartbeat=0.05, lease=5, clock=False) as worker:
        wait_until(lambda: scrape(seen).get(("sqla_jobs_runs_started_total", "default", "wait")) == 1)
        with database.begin() as connection:
            connection.execute(text("DELETE FROM sqla_processes"))
        wait_until(lambda: ended(scrape(seen)) == {("lost", "wait"): 1})
        shop.gate.set()
        wait_until(lambda: worker.runs >= 2)
    assert ended(scrape(seen)) == {("lost", "wait"): 1, ("succeeded", "wait"): 1}


def test_scrapes_cannot_load_the_database_and_a_registry_reads_nothing(database: Engine) -> None:
    with statements(database) as sent:
        seen = registry(jobs)
        assert sent == []
        threads = [threading.Thread(target=scrape, args=(seen,)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        once = len(sent)
        scrape(seen)
        assert len([one for one in sent if "set_config" in one]) == 1, "one scrape of six has read"
        assert len(sent) == once < 20


def test_a_database_that_is_away_leaves_what_workers_have_counted(database: Engine) -> None:
    seen = registry(jobs)
    jobs._counters.ended([end_of("mark")])
    jobs.bind(create_engine("postgresql+psycopg://127.0.0.1:1/nothing"))
    found = scrape(seen)
    assert found["sqla_jobs_database_up",] == 0
    assert found["sqla_jobs_runs_ended_total", "succeeded", "default", "mark"] == 1
    assert not any(name.startswith(("sqla_jobs_queue", "sqla_jobs_task", "sqla_jobs_processes")) for name, *_ in found)


def test_the_number_of_series_is_bounded(session: Session) -> None:
    session.execute(
        text(
            "INSERT INTO sqla_jobs (task, args, queue, state)"
            " SELECT 'task' || n, '{}', 'queue' || n, 'queued' FROM generate_series(1, 300) n"
        )
    )
    session.commit()
    seen = registry(jobs)
    jobs._counters.ended(end_of(f"counted{n}") for n in range(50))
    before = scrape(seen)
    jobs._counters.ended(end_of(f"counted{n}") for n in range(500))
    found = scrape(seen)
    assert {key: found[key] for key in before}.keys() == before.keys(), "a series stays"
    queues = {key[1] for key in found if key[0] == "sqla_jobs_queue_jobs"}
    assert len(queues | {"default"}) == 101, "the runs were of the queue default"
    assert sum(value for key, value in found.items() if key[0] == "sqla_jobs_queue_jobs" and key[2] == "queued") == 300
    counted = {key[3]: value for key, value in found.items() if key[0] == "sqla_jobs_runs_ended_total"}
    assert sum(counted.values()) == 550
    of_tasks = {key[2] for key in found if key[0] == "sqla_jobs_task_jobs"}
    assert len(of_tasks | counted.keys()) == 101
    assert "other" in counted
    assert found["sqla_jobs_runs_ended_total", "succeeded", "default", "counted7"] == 2


def test_limits_are_told_by_name_and_never_by_key(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    shopped = limited_shop.jobs
    limited_shop.Base.metadata.create_all(engine)
    shopped.bind(engine)
    monkeypatch.setattr(shopped, "_counters", type(shopped._counters)())
    with Session(engine) as session:
        for n in range(3):
            limited_shop.pair.enqueue(session, n=n)
            limited_shop.keyed.enqueue(session, account=41 + n)
        shopped.set_limit(session, limited_shop.pair, running=0)
        shopped.set_limit(session, limited_shop.keyed, key=41, running=7)
        shopped.set_limit(session, queue="default", running=20)
        session.commit()
        shopped.worker().drain()
    found = scrape(registry(shopped))
    limits = {key: value for key, value in found.items() if key[0].startswith("sqla_jobs_limit_")}
    assert limits["sqla_jobs_limit_max", "concurrency", "pair", "all"] == 0
    assert limits["sqla_jobs_limit_used", "concurrency", "pair", "all"] == 0
    assert limits["sqla_jobs_limit_waiting_jobs", "concurrency", "pair", "all"] == 3
    assert limits["sqla_jobs_limit_max", "concurrency", "keyed", "each_key"] == 1
    assert limits["sqla_jobs_limit_max", "queue", "default", "all"] == 20
    assert not any("41" in label for key in limits for label in key)
