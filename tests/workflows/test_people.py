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


def test_a_blocked_job_says_what_it_waits_for(session: Session) -> None:
    first = shop.mark.enqueue(session, n=1)
    others = [shop.mark.enqueue(session, n=n) for n in range(12)]
    alone = shop.mark.options(after=first).enqueue(session, n=20)
    last = shop.mark.options(after=[first, *others]).enqueue(session, n=20)
    session.commit()
    assert reasons(session, alone) == f"It waits for job {first.id} (mark), which is queued."
    assert reasons(session, last) == f"It waits for job {first.id} (mark), which is queued, and 12 more."


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
    assert Delete().one(Changing(session, jobs.models, jobs.tasks), bad)
    session.commit()
    assert re.match(rf"It is held: (job {bad_id}|a job before it) was deleted\. ", reasons(session, held))


def test_a_cancelled_job_names_the_job_that_it_waited_for(session: Session, database: Engine) -> None:
    bad = shop.flaky.options(max_attempts=1).enqueue(session, good_from=2)
    after = shop.mark.options(after=bad).enqueue(session, n=2)
    last = shop.mark.options(after=after).enqueue(session, n=2)
    by_hand = shop.mark.options(after=shop.mark.options(delay=3600).enqueue(session, n=1)).enqueue(session, n=3)
    run_all(session, database)
    jobs.cancel(session, by_hand)
    session.commit()
    said = reasons(session, after)
    assert re.match(rf"It was cancelled at .* because job {bad.id} \(flaky\) failed\. `sqla-jobs retry {bad.id}`", said)
    assert f"because job {after.id} (mark) was cancelled." in reasons(session, last)
    assert "because" not in reasons(session, by_hand)


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


def test_a_job_after_a_batch_counts_the_failures_and_offers_to_retry_the_batch(
    session: Session, database: Engine
) -> None:
    batch = jobs.batch(session, name="import 17")
    shop.flaky.options(max_attempts=1, batch=batch).enqueue_many(session, [{"good_from": 2}] * 3)
    other = shop.mark.options(batch=batch, delay=3600).enqueue(session, n=1)
    after = shop.mark.options(after=batch).enqueue(session, n=2)
    held = shop.mark.options(after=batch, if_failed="hold").enqueue(session, n=3)
    run_all(session, database)
    jobs.cancel(session, other)
    session.commit()
    jobs.worker(bind=database).drain()
    lost = r"of the jobs in the batch 'import 17', 3 failed and 1 was cancelled, such as job \d+ \((flaky|mark)\)\."
    retry = f"`sqla-jobs batch retry {batch.id}` runs these jobs"
    assert re.match(rf"It was cancelled at .* because {lost} {retry} and this one again\.$", reasons(session, after))
    assert re.match(
        rf"It is held: {lost} {retry} again; `sqla-jobs retry {held.id}` runs this one without them\.$",
        reasons(session, held),
    )


def test_a_job_deep_in_a_chain_names_its_first_job(session: Session, database: Engine) -> None:
    def chain(first: Any) -> Any:
        second = shop.mark.options(after=first, if_failed="hold").enqueue(session, n=1)
        third = shop.mark.options(after=second).enqueue(session, n=2)
        session.flush()
        ids.append(second.id)
        return shop.mark.options(after=third).enqueue(session, n=3)

    ids = list[int]()
    later, bad = shop.mark.options(delay=3600), shop.flaky.options(max_attempts=1)
    after_later, after_bad = chain(later.enqueue(session, n=0)), chain(bad.enqueue(session, good_from=2))
    run_all(session, database)
    said = reasons(session, after_later)
    assert said.startswith(
        f"It waits for job {ids[0] + 1} (mark), which is blocked. The first job of that chain is job "
    )
    assert said.endswith("(mark), which is scheduled: `sqla-jobs why 1` says more.")
    assert reasons(session, after_bad).endswith(
        f" (flaky), which failed and holds job {ids[1]}: `sqla-jobs why {ids[1]}` says more."
    )
