"""Jobs after other jobs, as their users see them: `after=`, `if_failed=`, and who hears of an end."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from sqla_jobs import ArgumentsError, JobMixin, Unique
from sqla_jobs.actions.audit import Changing
from sqla_jobs.actions.jobs import Delete
from sqla_jobs.queries import Queries
from sqla_jobs.worker import Worker
from tests import shop
from tests.helpers import states, wait_until
from tests.shop import jobs


def state_of(session: Session, job: JobMixin) -> str:
    session.rollback()
    return str(session.scalar(select(jobs.Job.state).where(jobs.Job.id == job.id)))


def reaches(session: Session, job: JobMixin, state: str) -> None:
    wait_until(lambda: state_of(session, job) == state, message=f"job {job.id} is {state_of(session, job)}")


@pytest.mark.parametrize("policy", ["cancel", "run", "hold"])
def test_what_becomes_of_a_job_after_one_that_fails_and_is_retried(
    policy: Any, session: Session, database: Engine
) -> None:
    bad = shop.flaky.options(max_attempts=1).enqueue(session, good_from=2)
    after = shop.mark.options(after=bad, if_failed=policy).enqueue(session, n=2)
    last = shop.mark.options(after=after).enqueue(session, n=3)
    session.commit()
    jobs.worker(bind=database).drain()
    session.refresh(after)
    expected = {"cancel": ["cancelled"] * 2, "run": ["succeeded"] * 2, "hold": ["blocked"] * 2}
    assert [state_of(session, after), state_of(session, last)] == expected[policy]
    if policy != "run":
        assert after.waits_for == bad.id
        jobs.retry(session, bad)
        session.commit()
        assert states(session) == {bad.id: "queued", after.id: "blocked", last.id: "blocked"}
        assert jobs.worker(bind=database).drain() == 3
        assert set(states(session).values()) == {"succeeded"}


def test_a_deleted_prerequisite_counts_as_cancelled(session: Session, worker: Worker) -> None:
    first = shop.mark.options(delay=3600).enqueue(session, n=1)
    second = shop.mark.options(delay=3600).enqueue(session, n=1)
    cancelled = shop.mark.options(after=[second, first]).enqueue(session, n=2)
    runs = shop.mark.options(after=first, if_failed="run").enqueue(session, n=3)
    held = shop.mark.options(after=first, if_failed="hold").enqueue(session, n=4)
    session.commit()
    assert Delete().one(Changing(session, jobs._models, jobs.tasks), first)
    session.commit()
    reaches(session, runs, "succeeded")
    jobs.cancel(session, second)
    session.commit()
    reaches(session, cancelled, "cancelled")
    assert state_of(session, held) == "blocked"


def test_a_rescued_job_that_fails_for_good_is_heard_of(session: Session, database: Engine, worker: Worker) -> None:
    """The process that takes the job back is not the one that ended it."""
    first = shop.wait.options(max_attempts=1, delay=3600).enqueue(session, n=1)
    second = shop.mark.options(after=first, if_failed="run").enqueue(session, n=2)
    session.commit()
    dead = "00000000-0000-0000-0000-000000000001"
    claimed = "state = 'running', attempt = 1, current_run_id = 900, process_id = :dead, started_at = now()"
    session.execute(text(f"UPDATE sqla_jobs SET {claimed} WHERE id = :id"), {"dead": dead, "id": first.id})
    session.commit()
    with database.begin() as connection:
        assert [one.job_id for one in Queries(jobs._models).rescue(connection)] == [first.id]
    assert state_of(session, first) == "failed"
    reaches(session, second, "succeeded")


def test_what_cannot_be_waited_for_is_refused_and_changes_nothing(session: Session, database: Engine) -> None:
    with Session(database) as other:
        unseen = shop.mark.enqueue(other, n=1)
        other.flush()
        wrong: Any
        for wrong in (7, jobs.Job(task="mark"), unseen):
            with pytest.raises(ArgumentsError):
                shop.mark.options(after=wrong).enqueue(session, n=2)
    first = shop.mark.enqueue(session, n=1)
    session.flush()
    options: Any
    for options in (
        {"after": first, "if_failed": "stop"},
        {"if_failed": "run"},
        {"after": first, "unique": Unique(on_conflict="replace", max_delay=None)},
    ):
        with pytest.raises(ArgumentsError):
            shop.mark.options(**options).enqueue(session, n=2)
    session.rollback()
    assert states(session) == {}


def test_an_end_between_the_enqueue_and_its_commit_is_not_lost(
    session: Session, database: Engine, worker: Worker
) -> None:
    """The worker that ended the job could not see the one that waits for it."""
    first = shop.wait.enqueue(session, n=1)
    session.commit()
    reaches(session, first, "running")
    second = shop.mark.options(after=first).enqueue(session, n=2)
    shop.gate.set()
    with Session(database) as beside:
        wait_until(lambda: states(beside)[first.id] == "succeeded")
    session.commit()
    reaches(session, second, "succeeded")
