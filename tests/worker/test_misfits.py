"""Jobs that not every live worker can run: a deploy added an argument, or a task, and old workers still run."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import tenacity
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from sqla_jobs import ConcurrencyLimit, JobMixin, Jobs
from sqla_jobs.monitoring.examine import examine
from sqla_jobs.monitoring.status import read_status
from tests.helpers import new_jobs, wait_until

NARROW = tenacity.Retrying(retry=tenacity.retry_if_exception_type(OSError))
KINDS = ["plain", "transactional", "coroutine", "limited"]


@pytest.fixture
def old(database: Engine) -> Jobs[Any]:
    """Yesterday's code."""
    jobs = new_jobs()
    jobs.bind(database)

    @jobs.task(retry=NARROW)
    def plain(a: int) -> None: ...

    @jobs.task(retry=NARROW)
    def transactional(session: Session, a: int) -> None: ...

    @jobs.task(retry=NARROW)
    async def coroutine(a: int) -> None: ...

    @jobs.task(retry=NARROW, limits=ConcurrencyLimit(1))
    def limited(a: int) -> None: ...

    return jobs


@pytest.fixture
def new(database: Engine) -> Jobs[Any]:
    """Today's: each task takes more, and there is one task more."""
    jobs = new_jobs()
    jobs.bind(database)

    @jobs.task
    def plain(a: int, b: str = "") -> str:
        return f"{a} {b}"

    @jobs.task
    def transactional(session: Session, a: int, b: str) -> str:
        return f"{a} {b}"

    @jobs.task
    async def coroutine(a: int, b: str) -> str:
        return f"{a} {b}"

    @jobs.task(limits=ConcurrencyLimit(1))
    def limited(a: int, b: str) -> str:
        return f"{a} {b}"

    @jobs.task
    def added() -> str:
        return "added"

    return jobs


@pytest.fixture
def session(database: Engine) -> Any:
    with Session(database, expire_on_commit=False) as session:
        yield session


def enqueue(jobs: Jobs[Any], session: Session, task: str, **arguments: Any) -> JobMixin:
    job: JobMixin = jobs.tasks[task].enqueue(session, **arguments)
    session.commit()
    return job


def make_due(session: Session, jobs: Jobs[Any]) -> None:
    session.execute(update(jobs.Job).where(jobs.Job.state == "scheduled").values(run_at=func.now()))
    session.commit()


def now(session: Session, jobs: Jobs[Any], job: JobMixin) -> tuple[str, int, list[str]]:
    session.rollback()
    session.refresh(job)
    runs = select(jobs.Run.outcome).where(jobs.Run.job_id == job.id).order_by(jobs.Run.id)
    return job.state, job.attempt, [str(one) for one in session.scalars(runs)]


def found(session: Session, jobs: Jobs[Any]) -> list[str]:
    """What `doctor` and `status` both say."""
    session.rollback()
    in_doctor = [str(finding) for finding in examine(session, jobs)]
    return [told for finding in read_status(session, jobs).warnings if (told := str(finding)) in in_doctor]


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_old_code_cannot_run_is_given_back_for_30_seconds_uncharged(
    session: Session, old: Jobs[Any], new: Jobs[Any], kind: str
) -> None:
    job = enqueue(new, session, kind, a=1, b="two")
    with old.worker(clock=False):
        wait_until(lambda: now(session, new, job) == ("scheduled", 0, ["snoozed"]))
        assert job.run_at - job.runs[0].finished_at == timedelta(seconds=30)
        assert sum("do not fit the code of" in why for why in new.why(session, job)) == 1
        also = enqueue(new, session, "plain", a=1)
        wait_until(lambda: now(session, new, also) == ("succeeded", 1, ["succeeded"]))
    make_due(session, new)
    with new.worker(clock=False):
        wait_until(lambda: now(session, new, job) == ("succeeded", 1, ["snoozed", "succeeded"]))
    assert job.runs[1].result == "1 two"


def test_why_doctor_and_status_know_a_task_that_no_live_worker_knows(
    session: Session, old: Jobs[Any], new: Jobs[Any]
) -> None:
    job = enqueue(new, session, "added")
    with old.worker(clock=False):
        (told,), (why,) = found(session, new), new.why(session, job)
        assert "task added" in told
        assert "no live worker of its queue knows it, and 1 job is waiting for it" in told
        assert why.startswith(f"T{told[1:]}; start workers with the code that declares it")
        with new.worker(clock=False):
            wait_until(lambda: now(session, new, job) == ("succeeded", 1, ["succeeded"]))


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_a_job_that_old_code_meets_a_minute_later_fails_an_attempt_by_its_policy(
    session: Session, old: Jobs[Any], new: Jobs[Any], kind: str
) -> None:
    job = enqueue(new, session, kind, a=1, b="two")
    for state in ("scheduled", "scheduled", "failed"):
        old.worker().drain()
        assert now(session, new, job)[0] == state
        if state == "scheduled":
            expected = f"a worker lacks the code or the key for 1 job, such as job {job.id}: "
            assert any(expected in told for told in found(session, new))
            assert any("put it off: " in why and "b" in why for why in new.why(session, job))
            make_due(session, new)
    assert now(session, new, job) == ("failed", 1, ["snoozed", "snoozed", "failed"])
    assert [run.error_type for run in job.runs] == ["Misfit", "Misfit", "sqla_jobs.errors.ArgumentsError"]


def test_a_later_attempt_has_a_minute_of_its_own(session: Session, old: Jobs[Any], new: Jobs[Any]) -> None:
    job = enqueue(new, session, "plain", a=1, b="two")
    for _ in range(2):
        old.worker().drain()
        make_due(session, new)
    session.execute(update(new.Job).values(attempt=1))
    session.commit()
    old.worker().drain()
    assert now(session, new, job) == ("scheduled", 1, ["snoozed"] * 3)
