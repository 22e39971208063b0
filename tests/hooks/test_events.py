"""What handlers are told of attempts."""

from __future__ import annotations

import io
import os
import signal
import threading
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import DeclarationError, Jobs, RunContext, RunEvent
from tests import hooked_shop as shop
from tests.conftest import StartWorker
from tests.counting import states
from tests.helpers import wait_until
from tests.hooked_shop import Told, jobs

SHOP = "tests.hooked_shop:jobs"


def told(session: Session) -> list[tuple[str, str]]:
    session.rollback()
    return [(one.name, one.task) for one in session.scalars(select(Told).order_by(Told.id))]


def untold(session: Session) -> int:
    session.rollback()
    return len(session.scalars(select(jobs.Run.id).where(jobs.Run.untold_at.is_not(None))).all())


def test_handlers_are_told_what_became_of_each_attempt(session: Session) -> None:
    shop.breaks.options(headers={"request": "ab12"}).enqueue(session, n=1)
    session.commit()
    with jobs.worker(["default", "alerts"], clock=False):
        wait_until(lambda: len(told(session)) == 3)
    assert told(session) == [("retried", "breaks"), ("failed", "breaks"), ("succeeded", "follow_up")]
    first = session.scalars(select(Told).order_by(Told.id)).first()
    assert first is not None
    assert (first.error, first.request) == ("no 1", "ab12")
    wait_until(lambda: untold(session) == 0)


def test_a_handler_that_raises_or_is_slow_harms_nothing(database: Engine, session: Session) -> None:
    release, names = threading.Event(), list[str]()

    class Base(DeclarativeBase):
        pass

    other = Jobs(Base, bind=database)

    @other.on("started", "succeeded")
    def raises(event: RunEvent) -> None:
        raise RuntimeError("of the handler")

    @other.on("started")
    def exits(event: RunEvent) -> None:
        raise SystemExit(3)

    other.on("started")(partial(print, file=io.StringIO()))

    @other.on("started", "succeeded")
    def slow(event: RunEvent) -> None:
        release.wait(20)
        names.append(event.name)

    @other.task
    def fine(n: int) -> None: ...

    fine.enqueue_many(session, [{"n": n} for n in range(50)])
    session.commit()
    with other.worker(clock=False) as worker:
        wait_until(lambda: worker.runs == 50)
        release.set()
        wait_until(lambda: len(names) == 100)
    assert sorted(set(names)) == ["started", "succeeded"]


def test_a_retry_of_a_cancelled_job_is_the_event_cancelled(database: Engine, session: Session) -> None:
    heard: list[RunEvent] = []
    other = Jobs(type("Base", (DeclarativeBase,), {}), bind=database)
    other.on("retried", "cancelled", "succeeded")(partial(heard.append))

    @other.task(name="fails")
    def fails(run: RunContext, is_cancelled: bool) -> None:
        if is_cancelled:
            with Session(database) as own:
                other.cancel(own, run.job_id)
                own.commit()
        raise ValueError("to be tried again")

    made = [fails.enqueue(session, is_cancelled=is_cancelled) for is_cancelled in (True, False)]
    session.commit()
    ids = [job.id for job in made]
    with other.worker(clock=False):
        wait_until(lambda: len(heard) == 2)
    told_of = {event.job_id: event for event in heard}
    cancelled, retried = (told_of[job_id] for job_id in ids)
    assert (cancelled.name, cancelled.error_type, cancelled.error) == ("cancelled", "ValueError", "to be tried again")
    assert cancelled.retry_in is None
    assert (retried.name, retried.retry_in is None) == ("retried", False)


def test_a_failure_whose_process_died_before_it_told_is_told_by_another(session: Session) -> None:
    job = shop.breaks.options(max_attempts=1).enqueue(session, n=7)
    session.flush()
    session.execute(
        text(
            "INSERT INTO sqla_runs (job_id, attempt, outcome, error, untold_at) "
            "VALUES (:id, 1, 'failed', 'no 7', now() - interval '1 s')"
        ),
        {"id": job.id},
    )
    session.execute(text("UPDATE sqla_jobs SET state = 'failed', finished_at = now(), attempt = 1"))
    session.commit()
    with jobs.worker(["other"], clock=False), jobs.worker(["other"], clock=False):
        wait_until(lambda: untold(session) == 0)
    assert told(session) == [("failed", "breaks")]


def test_a_service_leaves_failures_of_tasks_that_it_does_not_know_to_others(session: Session) -> None:
    session.execute(
        text(
            "INSERT INTO sqla_jobs (id, task, args, state, finished_at) VALUES (99, 'elsewhere', '{}', 'failed', now())"
        )
    )
    due = "now() - interval '1 s'"
    session.execute(
        text(f"INSERT INTO sqla_runs (job_id, attempt, outcome, untold_at) VALUES (99, 1, 'failed', {due})")
    )
    session.commit()
    shop.breaks.options(max_attempts=1).enqueue(session, n=1)
    session.commit()
    with jobs.worker(clock=False):
        wait_until(lambda: ("failed", "breaks") in told(session))
    assert told(session) == [("failed", "breaks")]
    assert untold(session) == 1


@pytest.mark.slow
def test_the_end_of_a_killed_process_is_told_by_another(
    database: Engine, database_url: str, session: Session, start_worker: StartWorker
) -> None:
    worker = start_worker(database_url, application=SHOP)
    shop.dies.enqueue(session, seconds=60)
    session.commit()
    wait_until(lambda: states(database) == {"running": 1})
    os.killpg(worker.pid, signal.SIGKILL)
    start_worker(database_url, "--queues", "other", application=SHOP)
    wait_until(lambda: told(session) == [("lost", "dies")], timeout=40)


@pytest.mark.slow
def test_a_handler_that_kills_its_process_is_called_again(
    database: Engine, database_url: str, session: Session, start_worker: StartWorker
) -> None:
    start_worker(database_url, application=SHOP)
    shop.breaks.options(max_attempts=1, headers={"dies": "yes"}).enqueue(session, n=1)
    session.commit()
    wait_until(lambda: untold(session) == 1)
    session.execute(text("UPDATE sqla_jobs SET headers = NULL"))
    session.execute(text("UPDATE sqla_runs SET untold_at = now()"))
    session.commit()
    wait_until(lambda: ("failed", "breaks") in told(session), timeout=40)


async def _coroutine(event: RunEvent) -> None: ...


@pytest.mark.parametrize(
    ("names", "target"),
    [(["finished"], print), ([], print), (["failed"], _coroutine), (["failed"], lambda: None)],
)
def test_what_cannot_be_told_is_refused_when_it_is_declared(names: Any, target: Any) -> None:
    other: Any = Jobs(type("Other", (DeclarativeBase,), {}))
    with pytest.raises(DeclarationError):
        other.on(*names)(target)
