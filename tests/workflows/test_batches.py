"""Batches, as their users see them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqla_jobs import ArgumentsError, JobExists, RunContext, Unique
from sqla_jobs.actions.batches import BatchCounts
from sqla_jobs.models.workflow_columns import BatchMixin
from sqla_jobs.monitoring.examine import examine
from sqla_jobs.monitoring.finding import Finding
from sqla_jobs.worker import Worker
from tests import shop
from tests.helpers import new_jobs, states, wait_until
from tests.shop import jobs


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
