"""Batches, as their users see them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pytest
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from sqla_jobs import ArgumentsError, JobExists, JobMixin, RunContext, Unique
from sqla_jobs.actions.audit import Changing
from sqla_jobs.actions.batches import BatchCounts
from sqla_jobs.actions.jobs import Delete
from sqla_jobs.models.workflow_columns import BatchMixin
from sqla_jobs.monitoring.examine import examine
from sqla_jobs.monitoring.finding import Finding
from sqla_jobs.worker import Worker
from tests import shop
from tests.helpers import new_jobs, states, wait_until
from tests.shop import jobs

Delete_ = Callable[[Session, JobMixin], None]
"""Deletes a job."""


def counts_of(session: Session, batch: BatchMixin) -> BatchCounts:
    session.rollback()
    return jobs.counts(session, batch)


def test_a_job_after_a_batch_starts_once_all_its_jobs_have_ended(session: Session, worker: Worker) -> None:
    batch = jobs.batch(session, name="import 17")
    shop.mark.options(batch=batch).enqueue_many(session, ({"n": n} for n in range(200)))
    last = shop.wait.options(batch=batch).enqueue(session, n=1)
    report = shop.mark.options(after=batch).enqueue(session, n=1000)
    session.commit()
    wait_until(lambda: counts_of(session, batch).succeeded == 200)
    counts = jobs.counts(session, batch)
    assert (counts.total, counts.ended, counts.running) == (201, 200, 1)
    assert 0.99 < counts.progress < 1
    assert counts.seconds_left is not None
    assert states(session)[report.id] == "blocked"
    shop.gate.set()
    wait_until(lambda: states(session)[report.id] == "succeeded")
    session.refresh(batch)
    assert batch.closed_at is not None
    assert last.batch_id == batch.id


def test_an_empty_batch_is_finished(session: Session, database: Engine) -> None:
    batch = jobs.batch(session)
    shop.mark.options(after=batch).enqueue(session, n=2)
    session.commit()
    assert jobs.worker(bind=database).drain() == 1


def test_a_batch_that_would_wait_for_itself_is_refused(session: Session) -> None:
    one, two = jobs.batch(session), jobs.batch(session)
    shop.mark.options(batch=one).enqueue(session, n=1)
    middle = shop.mark.options(after=one, batch=two).enqueue(session, n=2)
    end = shop.mark.options(after=two).enqueue(session, n=3)
    for before in (one, middle, end, two):
        with pytest.raises(ArgumentsError, match="batch"):
            shop.mark.options(after=before, batch=one).enqueue(session, n=4)
    session.commit()


def circles(session: Session) -> list[Finding]:
    return [one for one in examine(session, jobs) if one.about == "circle of jobs"]


def test_doctor_names_jobs_that_wait_for_each_other(session: Session, database: Engine) -> None:
    """Neither transaction sees the other's job."""
    one, two = jobs.batch(session), jobs.batch(session)
    free = shop.mark.options(after=one).enqueue(session, n=1)
    session.commit()
    assert circles(session) == []
    with Session(database) as other:
        first = shop.mark.options(batch=one, after=two).enqueue(session, n=2)
        second = shop.mark.options(batch=other.merge(two), after=other.merge(one)).enqueue(other, n=3)
        session.commit()
        other.commit()
        ids = [first.id, second.id]
    jobs.worker(bind=database).drain()
    (found,) = circles(session)
    assert all(f"job {job_id}" in found.found for job_id in ids)
    assert states(session)[free.id] == "blocked"
    jobs.cancel(session, ids[0])
    session.commit()
    jobs.worker(bind=database).drain()
    assert "blocked" not in states(session).values()


def test_a_batch_is_cancelled_and_retried_as_one(session: Session, database: Engine) -> None:
    batch = jobs.batch(session)
    bad = shop.flaky.options(batch=batch, max_attempts=1).enqueue(session, good_from=2)
    second = shop.mark.options(batch=batch, after=bad).enqueue(session, n=1)
    good = shop.mark.options(batch=batch).enqueue(session, n=2)
    report = shop.mark.options(after=batch).enqueue(session, n=3)
    session.commit()
    assert jobs.worker(bind=database).drain() == 2
    assert states(session) == {bad.id: "failed", second.id: "cancelled", good.id: "succeeded", report.id: "cancelled"}
    assert jobs.retry(session, batch).changed == 1
    session.commit()
    assert states(session) == {bad.id: "queued", second.id: "blocked", good.id: "succeeded", report.id: "blocked"}
    assert jobs.cancel(session, batch).changed == 2
    session.commit()
    jobs.worker(bind=database).drain()
    assert states(session)[report.id] == "cancelled"
    assert jobs.retry(session, batch).changed == 2
    session.commit()
    assert jobs.worker(bind=database).drain() == 3
    assert set(states(session).values()) == {"succeeded"}


def test_a_run_reads_the_results_before_it_and_adds_to_its_batch(session: Session, database: Engine) -> None:
    own = new_jobs()
    seen: list[object] = []

    @own.task(name="size")
    def size(n: int) -> tuple[int, str]:
        return n, "b"

    @own.task(name="more")
    def more(run: RunContext, n: int) -> None:
        assert run.batch is not None
        with Session(database) as other:
            size.options(batch=run.batch).enqueue(other, n=n)
            other.commit()

    @own.task(name="total")
    def total(run: RunContext) -> int:
        results = run.results(size)
        seen.extend(results)
        assert run.results(more) == [None]
        assert run.batch is None
        return sum(n for n, _ in results)

    batch = own.batch(session)
    more.options(batch=batch).enqueue(session, n=7)
    alone = size.enqueue(session, n=1)
    end = total.options(after=[alone, batch]).enqueue(session)
    session.commit()
    assert own.worker(bind=database).drain() == 4
    assert seen == [(1, "b"), (7, "b")]
    session.refresh(end)
    assert end.result == 8


def test_a_retried_job_opens_its_batch_again(session: Session, database: Engine) -> None:
    batch = jobs.batch(session)
    bad = shop.flaky.options(batch=batch, max_attempts=1).enqueue(session, good_from=2)
    shop.mark.options(after=batch, if_failed="run").enqueue(session, n=1)
    session.commit()
    assert jobs.worker(bind=database).drain() == 2
    session.refresh(batch)
    assert batch.closed_at is not None
    assert jobs.retry(session, bad)
    shop.mark.options(batch=batch).enqueue(session, n=2)
    session.commit()
    assert jobs.worker(bind=database).drain() == 2


def by_session(session: Session, job: JobMixin) -> None:
    session.delete(job)


def by_command(session: Session, job: JobMixin) -> None:
    changing = Changing(session, jobs._models, jobs.tasks)
    assert Delete().one(changing, job)


DELETED = pytest.mark.parametrize("delete", [by_session, by_command])


@DELETED
@pytest.mark.parametrize(("if_failed", "state"), [("cancel", "cancelled"), ("hold", "blocked"), ("run", "succeeded")])
def test_a_deleted_job_of_a_batch_counts_as_cancelled(
    session: Session, database: Engine, delete: Delete_, if_failed: Literal["cancel", "hold", "run"], state: str
) -> None:
    batch = jobs.batch(session)
    first, *_ = [shop.mark.options(batch=batch).enqueue(session, n=n) for n in range(2)]
    other = shop.mark.enqueue(session, n=2)
    reports = [
        shop.mark.options(after=batch, if_failed=if_failed).enqueue(session, n=3),
        shop.mark.options(after=[other, batch], if_failed=if_failed).enqueue(session, n=4),
    ]
    session.commit()
    delete(session, first)
    session.commit()
    jobs.worker(bind=database).drain()
    assert {states(session)[job.id] for job in reports} == {state}


@DELETED
def test_a_held_job_stays_held_if_the_failed_job_is_deleted(
    session: Session, database: Engine, delete: Delete_
) -> None:
    batch = jobs.batch(session)
    wrong = shop.fails_slowly.options(batch=batch, max_attempts=1).enqueue(session, message="no")
    report = shop.mark.options(after=batch, if_failed="hold").enqueue(session, n=2)
    session.commit()
    jobs.worker(bind=database).drain()
    session.refresh(wrong)
    delete(session, wrong)
    session.commit()
    jobs.worker(bind=database).drain()
    assert states(session)[report.id] == "blocked"
    jobs.retry(session, report)
    session.commit()
    jobs.worker(bind=database).drain()
    assert states(session)[report.id] == "succeeded"


def test_a_retry_beside_a_deleted_job_of_the_batch_runs_nothing_without_it(session: Session, database: Engine) -> None:
    batch = jobs.batch(session)
    one, other = [
        shop.fails_slowly.options(batch=batch, max_attempts=1).enqueue(session, message="no") for _ in range(2)
    ]
    report = shop.mark.options(after=batch).enqueue(session, n=2)
    session.commit()
    jobs.worker(bind=database).drain()
    session.refresh(report)
    assert report.state == "cancelled"
    gone, kept = (one, other) if report.waits_for == other.id else (other, one)
    session.refresh(gone)
    session.delete(gone)
    session.execute(update(jobs.Job).where(jobs.Job.id == kept.id).values(task="mark", args={"n": 1}))
    session.commit()
    jobs.retry(session, kept)
    session.commit()
    jobs.worker(bind=database).drain()
    assert states(session) == {kept.id: "succeeded", report.id: "cancelled"}


def test_jobs_after_a_batch_can_be_deleted_with_it(session: Session) -> None:
    batch = jobs.batch(session)
    shop.mark.options(batch=batch).enqueue_many(session, ({"n": n} for n in range(3)))
    shop.mark.options(after=batch).enqueue(session, n=2)
    session.commit()
    for job in session.scalars(select(jobs.Job)):
        session.delete(job)
    session.commit()
    assert states(session) == {}


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("policy", ["return", "replace"])
def test_a_job_of_a_taken_key_that_is_not_in_the_batch_is_refused(session: Session, policy: Any, many: bool) -> None:
    options: Any = {"max_delay": None} if policy == "replace" else {}
    unique = Unique([], on_conflict=policy, **options)
    job = shop.mark.options(unique=unique).enqueue(session, n=1)
    batch = jobs.batch(session, name="import 17")
    task = shop.mark.options(unique=unique, batch=batch)
    enqueue = partial(task.enqueue_many, session, [{"n": 2}]) if many else partial(task.enqueue, session, n=2)
    with pytest.raises(JobExists) as caught:
        enqueue()
    assert caught.value.job is job
    assert (job.args, job.times_replaced, job.batch_id) == ({"n": 1}, None, None)
    after = shop.mark.options(after=[batch, caught.value.job]).enqueue(session, n=3)
    session.commit()
    assert after.state == "blocked"


@pytest.mark.parametrize("unique", [Unique([]), Unique([], on_conflict="replace", max_delay=None)])
def test_a_job_of_a_taken_key_that_is_in_the_batch_stays_there(session: Session, unique: Unique) -> None:
    batch = jobs.batch(session)
    task = shop.mark.options(unique=unique, batch=batch)
    job = task.enqueue(session, n=1)
    assert task.enqueue(session, n=2) is job
    assert task.enqueue_many(session, [{"n": 3}]).inserted == 0
    session.commit()
    assert jobs.counts(session, batch).total == 1
