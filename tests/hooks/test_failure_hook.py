"""The task that is enqueued in the commit that stores a final failure."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import DeclarationError, Jobs, Unique
from sqla_jobs.testing import drain
from tests import hooked_shop as shop
from tests.conftest import StartWorker
from tests.helpers import wait_until
from tests.hooked_shop import jobs

Job = jobs.Job
other = Jobs(type("Other", (DeclarativeBase,), {}))


def test_it_follows_the_last_attempt_and_no_other(session: Session) -> None:
    job = shop.breaks.enqueue(session, n=1)
    assert drain(session, jobs, max_runs=10, errors="record").runs == 3
    (follow_up,) = session.scalars(select(Job).where(Job.task == "follow_up"))
    assert (job.state, job.attempt) == ("failed", 2)
    assert (follow_up.args, follow_up.queue, follow_up.priority) == ({"job_id": job.id}, "alerts", -1)
    assert follow_up.runs[0].result == f"job {job.id} failed"


def test_it_follows_what_a_schedule_enqueued(session: Session) -> None:
    session.add(jobs.Schedule(name="often", task="breaks", cron="* * * * * *", args={"n": 5}))
    session.commit()
    clock = jobs.clock()
    wait_until(lambda: clock.tick() == 1)
    drain(session, jobs, errors="record")
    assert session.scalars(select(Job.state).where(Job.task == "follow_up")).all() == ["succeeded"]


@pytest.mark.slow
def test_it_follows_a_job_whose_process_was_killed(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    shop_of = {"application": "tests.hooked_shop:jobs"}
    worker = start_worker(database_url, "--queues", "default", **shop_of)
    with Session(database.execution_options(isolation_level="AUTOCOMMIT")) as session:
        job = shop.dies.enqueue(session, seconds=60)
        session.commit()
        state = select(Job.state).where(Job.id == job.id)
        wait_until(lambda: session.scalars(state).one() == "running")
        os.killpg(worker.pid, signal.SIGKILL)
        start_worker(database_url, "--queues", "alerts", **shop_of)
        followed = select(Job.state).where(Job.task == "follow_up")
        wait_until(lambda: session.scalars(followed).all() == ["succeeded"])
        assert session.scalars(state).one() == "failed"


@pytest.mark.parametrize(
    ("value", "follows"),
    [
        *(("{}", False), ("[]", False), ("7", False), ('{"task": null}', False)),
        ('{"task": "follow_up"}', True),
        *((f'{{"task": "follow_up", {also}}}', True) for also in ('"priority": 11', '"priority": "x"')),
        *((f'{{"task": "follow_up", "max_lost": {most}}}', True) for most in ("0", "99999", "2.5")),
        *((f'{{"task": "follow_up", "max_attempts": {number}}}', True) for number in ("0", "9999999999")),
        *((f'{{"task": "follow_up", "gates": {gates}}}', True) for gates in ("7", "[null]", str([*range(9)]))),
    ],
)
def test_whatever_a_row_says_its_failure_is_stored(session: Session, value: str, follows: bool) -> None:
    insert = (
        "INSERT INTO sqla_jobs (task, args, max_attempts, on_failure) "
        "VALUES ('breaks', '{\"n\": 1}', 1, CAST(:value AS jsonb))"
    )
    session.execute(text(insert), {"value": value})
    assert drain(session, jobs, errors="record").runs == 1 + follows
    assert session.scalars(select(Job.state).where(Job.task == "breaks")).all() == ["failed"]
    assert set(session.scalars(select(Job.max_lost).where(Job.task == "follow_up"))) <= {None}


@pytest.mark.parametrize("target", ["follow_up", "two", "none", "foreign", "text", "row", "options", "unique"])
def test_what_cannot_follow_is_refused_when_it_is_declared(target: str) -> None:
    def failing() -> None: ...

    @other.task(name="two")
    def two(a: int, b: int) -> None: ...

    @other.task(name="none")
    def none() -> None: ...

    @other.task(name="text")
    def text(job_id: str) -> None: ...

    @other.task(name="row")
    def row(session: Session, limit: other.Limit) -> None: ...  # type: ignore[name-defined]

    @other.task(name="once", unique=Unique())
    def once(job_id: int) -> None: ...

    @other.task(name="fits")
    def fits(session: Session, job: other.Job) -> None: ...  # type: ignore[name-defined]

    other.task(name="followed", on_failure=fits)(failing)
    tasks: dict[str, Any] = {"two": two, "none": none, "foreign": shop.follow_up, "text": text, "row": row}
    tasks |= {"unique": once, "options": fits.options(queue="urgent")}
    with pytest.raises(DeclarationError, match="on_failure"):
        other.task(name="other", on_failure=tasks.get(target, target))(failing)
