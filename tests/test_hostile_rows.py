"""Rows that nobody meant to make: extreme values, triggers that refuse, and that all other jobs go on."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, func, insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sqla_jobs import processes
from sqla_jobs.models import PARKED
from sqla_jobs.queries import Among, Queries
from sqla_jobs.worker.set_aside import SetAside
from tests import shop
from tests.counting import runs, states
from tests.helpers import refuse, wait_until
from tests.shop import jobs

FAST: dict[str, Any] = {"heartbeat": 0.2, "lease": 1.0, "poll": 0.1}

REFUSED = {
    "jobs": [
        "attempt = 2147483647",
        "attempt = -1",
        "max_attempts = 0",
        "max_attempts = 2147483647",
        "id = 0",
        "id = 9223372036854775807",
        "position = -1",
        "progress = 'NaN'",
        "progress = 1.5",
        "run_at = '-infinity'",
        "run_at = '10000-01-01'",
        *(
            f"{column} = '{moment}'"
            for column in ("created_at", "scheduled_for", "started_at", "finished_at", "cancel_requested_at")
            for moment in ("infinity", "-infinity", "294276-01-01", "4713-01-01 BC")
        ),
    ],
    "runs": ["id = -1", "attempt = -1", "started_at = 'infinity'", "finished_at = '-infinity'"],
    "schedules": ["priority = 11", "args = '[]'", "jitter = 'NaN'", "jitter = -1", "next_run_at = 'infinity'"],
    "processes": ["lease = 0", "lease = 'Infinity'", "lease = 'NaN'", "beat_at = 'infinity'", "queues = '[]'"],
    "queues": ["paused_at = 'infinity'"],
    "audit": ["at = 'infinity'", "details = '7'"],
}
ONE = {
    "jobs": "INSERT INTO sqla_jobs (task, args) VALUES ('mark', '{}')",
    "runs": "INSERT INTO sqla_runs (job_id, attempt, outcome) VALUES (1, 1, 'lost')",
    "schedules": "INSERT INTO sqla_schedules (name, task, cron) VALUES ('s', 'mark', '* * * * *')",
    "processes": "INSERT INTO sqla_processes DEFAULT VALUES",
    "queues": "INSERT INTO sqla_queues (name) VALUES ('q')",
    "audit": "INSERT INTO sqla_audit DEFAULT VALUES",
}


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    shop.gate.clear()
    with Session(database) as session:
        yield session
    shop.gate.set()


@pytest.mark.parametrize(("table", "value"), [(table, value) for table in REFUSED for value in REFUSED[table]])
def test_a_value_without_a_meaning_is_refused(table: str, value: str, module_engine: Engine) -> None:
    with module_engine.connect() as connection:
        shop.Base.metadata.create_all(connection)
        connection.execute(text(ONE[table]))
        with pytest.raises(IntegrityError, match="check constraint"):
            connection.execute(text(f"UPDATE sqla_{table} SET {value.replace(':', chr(92) + ':')}"))


def test_a_job_that_was_tried_a_billion_times_is_claimed_and_its_number_stays(session: Session) -> None:
    session.execute(text("""INSERT INTO sqla_jobs (task, args, attempt) VALUES ('mark', '{"n": 1}', 1000000000)"""))
    shop.mark.enqueue(session, n=2)
    session.commit()
    assert jobs.worker().drain() == 2
    assert set(session.scalars(select(jobs.Job.attempt))) == {1_000_000_000, 1}


def test_a_parked_job_is_shown_as_parked_and_waits_until_it_is_rescheduled(session: Session) -> None:
    session.execute(text("""INSERT INTO sqla_jobs (task, args, run_at) VALUES ('mark', '{"n": 1}', 'infinity')"""))
    shop.mark.options(run_at=PARKED).enqueue(session, n=2)
    shop.mark.options(delay=0.2).enqueue(session, n=3)
    session.commit()
    with jobs.worker(**FAST):
        wait_until(lambda: states(session.connection().engine) == {"scheduled": 2, "succeeded": 1})
    parked = session.scalars(select(jobs.Job).where(jobs.Job.run_at == PARKED)).all()
    assert [job.run_at for job in parked] == [PARKED, PARKED]
    assert session.scalar(text("SELECT count(*) FROM sqla_jobs WHERE run_at = 'infinity'")) == 2
    session.commit()
    jobs.retry(session, parked[0])
    session.commit()
    assert jobs.worker().drain() == 1


def mark_many(session: Session, count: int = 50, **options: Any) -> None:
    for n in range(count):
        shop.mark.options(**options).enqueue(session, n=n)
    session.commit()


def set_aside_by(session: Session) -> dict[str, str]:
    session.rollback()
    return {key: why for shown in session.scalars(select(jobs.Process.set_aside)) for key, why in shown.items()}


def test_jobs_that_cannot_be_claimed_hold_up_no_others_and_are_told_of_once(
    session: Session, database: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [shop.write.enqueue(session, n=n) for n in (1, 2)]
    session.commit()
    refuse(session, "NEW.task = 'write' AND NEW.state = 'running'")
    mark_many(session)
    with jobs.worker(concurrency=2, **FAST):
        wait_until(lambda: states(database) == {"succeeded": 50, "queued": 2})
        mark_many(session)
        wait_until(lambda: states(database) == {"succeeded": 100, "queued": 2})
        told = {str(job.id): "its claim is refused by the server: not this one" for job in bad}
        wait_until(lambda: set_aside_by(session) == told)
    said = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(said) == 2
    session.execute(text("DROP TRIGGER refuse ON sqla_jobs"))
    session.commit()
    assert jobs.worker().drain() == 2


def test_a_job_that_cannot_be_promoted_holds_up_no_others(session: Session, database: Engine) -> None:
    shop.write.options(delay=0.001).enqueue(session, n=1)
    session.commit()
    refuse(session, "NEW.task = 'write' AND NEW.state = 'queued'")
    mark_many(session, delay=0.001)
    with jobs.worker(**FAST):
        wait_until(lambda: states(database) == {"succeeded": 50, "scheduled": 1})
        wait_until(
            lambda: list(set_aside_by(session).values()) == ["its promotion is refused by the server: not this one"]
        )


def orphan(session: Session, task: str, **values: Any) -> int:
    """A job that runs, of a process that is no more."""
    row: dict[str, Any] = {
        "task": task,
        "args": {"n": 1},
        "state": "running",
        "attempt": 1,
        "current_run_id": func.nextval("sqla_runs_id_seq"),
        "process_id": uuid.uuid4(),
        "started_at": func.now(),
    }
    job_id = session.scalar(insert(jobs.Job).values(row | values).returning(jobs.Job.id))
    session.commit()
    assert job_id is not None
    return job_id


def test_a_job_that_cannot_be_rescued_holds_up_no_others(session: Session, database: Engine) -> None:
    orphan(session, "write")
    refuse(session, "OLD.task = 'write' AND OLD.state = 'running'")
    for _ in range(20):
        orphan(session, "mark")
    with jobs.worker(**FAST):
        wait_until(lambda: states(database) == {"succeeded": 20, "running": 1})
        wait_until(
            lambda: list(set_aside_by(session).values()) == ["its rescue is refused by the server: not this one"]
        )


def test_a_lost_job_whose_run_id_is_taken_or_that_was_lost_very_often_is_rescued(
    session: Session, database: Engine
) -> None:
    taken = session.scalar(text("INSERT INTO sqla_runs (job_id, attempt, outcome) VALUES (0, 1, 'lost') RETURNING id"))
    foreign = orphan(session, "mark", current_run_id=taken)
    unlucky = orphan(session, "mark", max_attempts=10_000)
    many = "INSERT INTO sqla_runs (job_id, attempt, outcome) SELECT :id, n, 'lost' FROM generate_series(1, 1100) n"
    session.execute(text(many), {"id": unlucky})
    session.commit()
    with jobs.worker(**FAST):
        wait_until(lambda: states(database) == {"succeeded": 1, "scheduled": 1})
    assert sorted(run.outcome for run in session.get_one(jobs.Job, foreign).runs) == ["lost", "succeeded"]
    assert runs(database, "lost") == 1103


def test_what_was_set_aside_is_tried_again(session: Session) -> None:
    asked: list[Among] = []

    def change(which: Among) -> str:
        asked.append(which)
        if which.only is None:
            raise_refusal()
        if 7 in which.only:
            raise_refusal()
        return "changed"

    def raise_refusal() -> None:
        session.rollback()
        session.execute(text("SELECT 1 / 0"))

    patient, hasty = SetAside(again=60), SetAside(again=0)
    for aside in (patient, hasty):
        assert aside.around("it", change, lambda _: [6, 7, 8, 9]) == ["changed"] * 2
    assert patient.reasons == {7: "it is refused by the server: division by zero"}
    assert hasty.reasons == {}


def test_a_claim_that_may_be_committed_is_not_asked_again(session: Session, database: Engine) -> None:
    """However the session writes moments, what the claim answers can be read."""
    shop.mark.enqueue(session, n=1)
    session.execute(text("UPDATE sqla_jobs SET schedule_id = 1, scheduled_for = '2026-11-26 12:00:00.123456 UTC'"))
    session.commit()
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET DateStyle = 'German'"))
        process_id = processes.register(connection, jobs.models, kind="worker", queues={}, lease=30)
        (claimed,) = Queries(jobs.models).claim(connection, process_id, {"default": 10}, list(jobs.tasks))
    assert claimed.scheduled_for is not None
    assert claimed.scheduled_for.isoformat() == "2026-11-26T12:00:00.123456+00:00"
