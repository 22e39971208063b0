"""Batches, as their users see them."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqla_jobs import ArgumentsError, JobState, RunContext
from sqla_jobs.actions.batches import BatchCounts
from sqla_jobs.models.workflow_columns import BatchMixin
from sqla_jobs.testing import drain, run_job
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


def test_jobs_join_from_several_transactions_until_the_batch_is_finished(session: Session, worker: Worker) -> None:
    batch = jobs.batch(session)
    first = shop.wait.options(batch=batch).enqueue(session, n=1)
    report = shop.mark.options(after=batch).enqueue(session, n=2)
    session.commit()
    shop.mark.options(batch=batch).enqueue(session, n=3)
    shop.gate.set()
    with Session(session.get_bind()) as beside:
        wait_until(lambda: states(beside)[first.id] == "succeeded")
        assert states(beside)[report.id] == "blocked", "a transaction adds a job to the batch"
    session.commit()
    wait_until(lambda: states(session)[report.id] == "succeeded")
    with pytest.raises(ArgumentsError, match="is finished"):
        shop.mark.options(batch=batch).enqueue(session, n=4)


def test_an_empty_batch_is_finished(session: Session, database: Engine) -> None:
    batch = jobs.batch(session)
    shop.mark.options(after=batch).enqueue(session, n=2)
    session.commit()
    assert jobs.worker(bind=database).drain() == 1


def test_a_job_that_joins_and_rolls_back_holds_up_nobody(session: Session, worker: Worker) -> None:
    batch = jobs.batch(session)
    report = shop.mark.options(after=[batch, shop.wait.enqueue(session, n=1)]).enqueue(session, n=2)
    session.commit()
    shop.mark.options(batch=batch).enqueue(session, n=3)
    session.flush()
    shop.gate.set()
    with Session(session.get_bind()) as beside:
        wait_until(lambda: "running" not in states(beside).values() and "queued" not in states(beside).values())
    session.rollback()
    wait_until(lambda: states(session)[report.id] == "succeeded")


def test_a_batch_that_would_wait_for_itself_is_refused(session: Session) -> None:
    one, two = jobs.batch(session), jobs.batch(session)
    shop.mark.options(batch=one).enqueue(session, n=1)
    middle = shop.mark.options(after=one, batch=two).enqueue(session, n=2)
    end = shop.mark.options(after=two).enqueue(session, n=3)
    for before in (one, middle, end, two):
        with pytest.raises(ArgumentsError, match="wait for the other for ever"):
            shop.mark.options(after=before, batch=one).enqueue(session, n=4)
    session.commit()


def test_a_batch_is_cancelled_and_retried_as_one(session: Session, database: Engine) -> None:
    batch = jobs.batch(session)
    bad = shop.flaky.options(batch=batch, max_attempts=1).enqueue(session, good_from=2)
    second = shop.mark.options(batch=batch, after=bad).enqueue(session, n=1)
    good = shop.mark.options(batch=batch).enqueue(session, n=2)
    report = shop.mark.options(after=batch).enqueue(session, n=3)
    session.commit()
    assert jobs.worker(bind=database).drain() == 2
    assert states(session) == {bad.id: "failed", second.id: "cancelled", good.id: "succeeded", report.id: "cancelled"}
    assert jobs.retry(session, batch) == 1
    session.commit()
    assert states(session) == {bad.id: "queued", second.id: "blocked", good.id: "succeeded", report.id: "blocked"}
    assert jobs.cancel(session, batch) == 2
    session.commit()
    jobs.worker(bind=database).drain()
    assert states(session)[report.id] == "cancelled"
    assert jobs.retry(session, batch) == 2
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


def test_drain_of_the_test_kit_runs_graphs_in_the_session_of_the_test(session: Session) -> None:
    batch = jobs.batch(session)
    top = shop.write.options(batch=batch).enqueue(session, n=1)
    bad = shop.flaky.options(max_attempts=1).enqueue(session, good_from=2)
    below = shop.write.options(after=[batch, top]).enqueue(session, n=2)
    never = shop.write.options(after=bad).enqueue(session, n=3)
    assert drain(jobs, session, errors="record") == 3
    assert below.state is JobState.succeeded
    assert never.state is JobState.cancelled
    assert session.scalars(select(shop.Effect.n).order_by(shop.Effect.id)).all() == [1, 2]


def test_run_job_gives_the_results_that_a_test_gives(session: Session) -> None:
    own = new_jobs()

    @own.task(name="size")
    def size(n: int) -> tuple[int, str]:
        return n, "b"

    @own.task(name="total")
    def total(run: RunContext) -> int:
        assert run.batch is None
        return sum(n for n, _ in run.results(size))

    assert run_job(session, total)() == 0
    assert run_job(session, total, results={size: [(1, "a"), (2, "b")]})() == 3


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
