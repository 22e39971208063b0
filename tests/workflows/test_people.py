"""Blocked jobs, held jobs and batches, as the people see them who run the application."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqla_jobs.actions.audit import Changing
from sqla_jobs.actions.jobs import Delete
from sqla_jobs.monitoring.examine import examine
from sqla_jobs.monitoring.status import read_status
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
        said = reasons(session, waits)
        assert said.startswith(f"Its row is held by pid {pid} of ")
        assert said.endswith("before that transaction ends. All that it waits for has ended.")


def test_a_job_after_a_batch_says_how_far_that_is(session: Session, database: Engine) -> None:
    batch, nameless = jobs.batch(session, name="import 17"), jobs.batch(session)
    shop.mark.options(batch=batch).enqueue_many(session, ({"n": n} for n in range(3)))
    session.commit()
    run_all(session, database)
    shop.mark.options(batch=batch).enqueue(session, n=4)
    shop.mark.options(batch=nameless, delay=3600).enqueue(session, n=4)
    report = shop.mark.options(after=[batch, nameless]).enqueue(session, n=5)
    session.commit()
    assert reasons(session, report) == (
        "It waits for the batch 'import 17': 3 of 4 have ended. "
        f"It waits for the batch {nameless.id}: 0 of 1 have ended."
    )


def test_a_held_job_names_the_failure_and_both_remedies(session: Session, database: Engine) -> None:
    bad = shop.flaky.options(max_attempts=1).enqueue(session, good_from=2)
    held = shop.mark.options(after=bad, if_failed="hold").enqueue(session, n=2)
    run_all(session, database)
    assert reasons(session, held) == (
        f"It is held: job {bad.id} (flaky) failed. `sqla-jobs retry {bad.id}` runs that job again; "
        f"`sqla-jobs retry {held.id}` runs this one without it."
    )
    found = [str(finding) for finding in examine(session, jobs)]
    assert f"held jobs: 1 job is held because a job before failed, such as job {held.id}" in found
    bad_id = bad.id
    assert Delete().one(Changing(session, jobs._models, jobs.tasks), bad)
    session.commit()
    assert re.match(rf"It is held: (job {bad_id}|a job before it) was deleted\. ", reasons(session, held))


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
    assert f"1 job is blocked, such as job {waits.id}, although what they wait for ended up to 5 min" in str(found)
    assert "start one: python -m sqla_jobs.worker" in found.remedy
    assert reasons(session, waits).startswith("All that it waits for has ended: a worker looks at it again soon")


def test_status_counts_blocked_jobs(session: Session) -> None:
    first = shop.mark.enqueue(session, n=1)
    shop.mark.options(after=first, queue="mail").enqueue_many(session, ({"n": n} for n in range(3)))
    session.commit()
    assert {one.name: (one.queued, one.blocked) for one in read_status(session, jobs).queues} == {
        "default": (1, 0),
        "mail": (0, 3),
    }
