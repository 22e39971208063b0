"""Blocked jobs, held jobs and batches, as the people see them who run the application."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqla_jobs.actions.audit import Changing
from sqla_jobs.actions.jobs import Delete
from sqla_jobs.monitoring.examine import examine
from tests import shop
from tests.shop import jobs


def reasons(session: Session, job: Any) -> str:
    """Why it waits, without what is about the workers."""
    session.rollback()
    return " ".join(jobs.why(session, job))


def run_all(session: Session, database: Engine) -> None:
    session.commit()
    jobs.worker(bind=database).drain()


def test_a_blocked_job_whose_row_is_locked_names_the_session(session: Session, database: Engine) -> None:
    first = shop.mark.enqueue(session, n=1)
    waits = shop.mark.options(after=first).enqueue(session, n=2)
    session.commit()
    with database.connect() as other:
        other.execute(text(f"SELECT 1 FROM sqla_jobs WHERE id = {waits.id} FOR UPDATE"))
        pid = other.scalar(text("SELECT pg_backend_pid()"))
        jobs.worker(bind=database).drain()
        assert f"pid {pid} " in reasons(session, waits)


def test_a_held_job_names_the_failure_and_both_remedies(session: Session, database: Engine) -> None:
    bad = shop.flaky.options(max_attempts=1).enqueue(session, good_from=2)
    held = shop.mark.options(after=bad, if_failed="hold").enqueue(session, n=2)
    run_all(session, database)
    said = reasons(session, held)
    assert all(f"`sqla-jobs retry {job.id}`" in said for job in (bad, held))
    (found,) = (one for one in examine(session, jobs) if one.about == "held jobs")
    assert f"job {held.id}" in str(found)
    assert Delete().one(Changing(session, jobs._models, jobs.tasks), bad)
    session.commit()
    assert "deleted" in reasons(session, held)


def test_jobs_that_nobody_resolves_are_a_finding(session: Session, database: Engine) -> None:
    first = shop.mark.enqueue(session, n=1)
    waits = shop.mark.options(after=first).enqueue(session, n=2)
    session.commit()
    session.execute(
        text(
            "UPDATE sqla_jobs SET state = 'succeeded', finished_at = clock_timestamp() - interval '5 min'"
            " WHERE id = :id"
        ),
        {"id": first.id},
    )
    session.commit()
    (found,) = (one for one in examine(session, jobs) if one.about == "blocked jobs")
    assert f"job {waits.id}" in str(found)
    assert "python -m sqla_jobs.worker" in found.remedy
    assert reasons(session, waits).startswith("All that it waits for has ended")
