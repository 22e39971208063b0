"""Following batches until all their jobs have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqla_jobs import ArgumentsError, BatchCounts, UnknownJob
from tests.following.application import fail, gate, jobs, report, settle, step_by_step
from tests.helpers import wait_until


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    gate.clear()
    with Session(database) as session:
        yield session
    gate.set()


def test_a_batch_is_followed_until_all_its_jobs_have_ended(session: Session) -> None:
    batch = jobs.batch(session)
    settle.options(batch=batch).enqueue_many(session, ({"n": n} for n in range(20)))
    fail.options(batch=batch, max_attempts=1).enqueue(session, message="no paper")
    step_by_step.options(batch=batch).enqueue(session)
    session.commit()
    seen: list[int] = []
    counts = BatchCounts()
    with jobs.worker(concurrency=2, clock=False):
        for counts in jobs.follow(batch, timeout=20):
            seen.append(counts.ended)
            if counts.ended == 21:
                gate.set()
    assert (counts.succeeded, counts.failed, counts.total) == (21, 1, 22)
    assert seen == sorted(seen)
    assert seen[-1] == 22


def test_wait_returns_the_counts_of_a_batch(session: Session) -> None:
    batch, empty = jobs.batch(session), jobs.batch(session)
    report.options(batch=batch).enqueue(session, pages=3)
    session.commit()
    assert jobs.wait(empty, timeout=20).total == 0
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(jobs.wait, batch, timeout=20)
        with jobs.worker(clock=False):
            assert waiting.result(20).succeeded == 1

    async def wait() -> int:
        updates = [counts async for counts in jobs.follow(batch, timeout=20)]
        return (await jobs.wait_async(batch, timeout=20)).succeeded + len(updates)

    assert asyncio.run(wait()) == 2


def test_a_batch_that_grows_is_followed_to_its_new_end(session: Session) -> None:
    batch = jobs.batch(session)
    step_by_step.options(batch=batch).enqueue(session)
    session.commit()
    with jobs.worker(clock=False), ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(jobs.wait, batch, timeout=20)
        settle.options(batch=batch).enqueue(session, n=1)
        session.commit()
        wait_until(lambda: jobs.counts(session, batch).succeeded == 1)
        assert not waiting.done()
        gate.set()
        assert waiting.result(20).succeeded == 2


def test_a_batch_that_is_not_there_or_does_not_end(session: Session) -> None:
    with pytest.raises(ArgumentsError, match="commit"):
        jobs.wait(jobs.batch(session))
    other = jobs.batch(session)
    session.flush()
    with pytest.raises(UnknownJob):
        jobs.wait(other, timeout=20)
    settle.options(batch=other).enqueue(session, n=1)
    session.commit()
    with pytest.raises(TimeoutError, match=f"batch {other.id} "):
        jobs.wait(other, timeout=0)
