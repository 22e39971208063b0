"""Following jobs until they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.orm import Session

from sqla_jobs import ArgumentsError, JobFailed, UnknownJob
from sqla_jobs.following.updates import JobUpdate, ReadUpdates
from tests.following.application import Report, fail, gate, jobs, report, settle, step_by_step
from tests.helpers import wait_until


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    gate.clear()
    with Session(database) as session:
        yield session
    gate.set()


def test_wait_returns_the_job_with_its_result(session: Session) -> None:
    plain, transactional = report.enqueue(session, pages=3), settle.enqueue(session, n=7)
    session.commit()
    with jobs.worker(clock=False):
        assert jobs.wait(plain, timeout=20).result == {"pages": 3, "title": "July"}
        assert report.result(plain, timeout=20) == Report(3, "July")
        assert settle.result(transactional.id, timeout=20) == 7
    session.refresh(plain)
    assert plain.result == {"pages": 3, "title": "July"}, "by its own session, too"


def test_what_failed_and_what_was_cancelled_is_raised(session: Session) -> None:
    one = fail.enqueue(session, message="no paper")
    other = report.options(delay=3600).enqueue(session, pages=1)
    session.commit()
    with jobs.worker(clock=False), ThreadPoolExecutor(1) as threads:
        with pytest.raises(JobFailed, match="no paper") as failed:
            jobs.wait(one, timeout=20)
        waiting = threads.submit(jobs.wait, other, timeout=20)
        jobs.cancel(session, other)
        session.commit()
        with pytest.raises(JobFailed, match="cancelled"):
            waiting.result(20)
    assert failed.value.job.id == one.id
    assert [run.outcome for run in failed.value.job.runs] == ["retried", "failed"]


def test_updates_come_with_progress_and_end_with_the_result(session: Session) -> None:
    one = step_by_step.enqueue(session)
    session.commit()
    seen: list[tuple[str, float | None, str | None]] = []
    task_result = None
    with jobs.worker(clock=False):
        for update in jobs.follow(one, timeout=20):
            seen.append((update.state, update.progress, update.progress_message))
            task_result = update.result
            if update.progress == 0.25:
                gate.set()
    assert task_result == "done"
    states = [state for state, _, _ in seen]
    assert states == sorted(states, key=["queued", "running", "succeeded"].index)
    assert ("running", 0.25, "one") in seen
    assert ("running", 0.75, "two") in seen


def test_coroutines_follow_in_an_event_loop(session: Session) -> None:
    one, other = step_by_step.enqueue(session), report.enqueue(session, pages=5)
    session.commit()

    async def follow() -> tuple[list[str], Any]:
        async def updates() -> list[str]:
            gate.set()
            return [update.state async for update in jobs.follow(one, timeout=20)]

        return await asyncio.gather(updates(), jobs.wait_async(other, timeout=20))

    with jobs.worker(clock=False):
        states, ended = asyncio.run(follow())
    assert states[-1] == "succeeded"
    assert ended.result["pages"] == 5


def test_a_timeout_of_zero_looks_once(session: Session) -> None:
    done = settle.enqueue(session, n=1)
    session.commit()
    with jobs.worker(clock=False):
        jobs.wait(done, timeout=20)
    assert settle.result(done, timeout=0) == 1
    queued = report.enqueue(session, pages=1)
    session.commit()
    with pytest.raises(TimeoutError, match=f"job {queued.id} "):
        jobs.wait(queued, timeout=0)

    async def look() -> int:
        return await settle.result_async(done, timeout=0)

    assert asyncio.run(look()) == 1


def test_a_job_that_is_not_there(session: Session) -> None:
    with pytest.raises(ArgumentsError, match="commit"):
        jobs.wait(report.enqueue(session, pages=1))
    session.flush()
    with pytest.raises(UnknownJob):
        jobs.wait(7_777, timeout=20)


def test_a_job_that_is_deleted_meanwhile(session: Session) -> None:
    one = report.enqueue(session, pages=1)
    session.commit()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(list, jobs.follow(one.id, timeout=20))
        session.delete(one)
        session.commit()
        with pytest.raises(UnknownJob):
            waiting.result(20)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of jobs of each read."""
    looks, read = list[int](), ReadUpdates.__call__

    def counted(self: ReadUpdates, connection: Connection, job_ids: Collection[int]) -> dict[int, JobUpdate]:
        looks.append(len(job_ids))
        return read(self, connection, job_ids)

    monkeypatch.setattr(ReadUpdates, "__call__", counted)
    return looks


@pytest.mark.slow
def test_a_thousand_who_follow_share_twenty_looks_a_second(session: Session, looks: list[int]) -> None:
    report.enqueue_many(session, ({"pages": n} for n in range(1000)))
    session.commit()
    ids = session.scalars(select(jobs.Job.id)).all()
    began = time.monotonic()
    with ThreadPoolExecutor(1000) as threads:
        waiting = [threads.submit(list, jobs.follow(one, timeout=60)) for one in ids]
        with jobs.worker(clock=False):
            assert {done.result(60)[-1].result["pages"] for done in waiting} == set(range(1000))
    # 50 ms after a look at a thousand jobs; less after one at the few that are left
    assert sum(0.02 + n * 3e-5 for n in looks[:-1]) <= time.monotonic() - began


def test_a_change_by_plain_sql_is_seen_soon(session: Session, looks: list[int]) -> None:
    one = report.enqueue(session, pages=1)
    session.commit()
    following = iter(jobs.follow(one.id, timeout=60))
    next(following)
    took = list[float]()
    for _ in range(3):
        looks.clear()
        wait_until(lambda: len(looks) > 5)  # meanwhile the pauses grow to the longest
        session.execute(text("UPDATE sqla_jobs SET attempt = attempt + 1"))
        session.commit()
        committed_at = time.monotonic()
        next(following)
        took.append(time.monotonic() - committed_at)
    assert min(took) <= 0.3
