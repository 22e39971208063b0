"""Jobs that not every live worker can run: a deploy added an argument, or a task, and old workers still run."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import tenacity
from sqlalchemy import Engine, event, select, text
from sqlalchemy.orm import Session

from sqla_jobs import ArgumentsError, ConcurrencyLimit, JobMixin, Jobs
from sqla_jobs.execution.attempt import Attempt
from sqla_jobs.execution.transactions import NotBegun
from sqla_jobs.monitoring.examine import examine
from sqla_jobs.monitoring.status import read_status
from sqla_jobs.queries import Claimed
from sqla_jobs.runtime.set_aside import SetAside
from sqla_jobs.worker import misfits
from sqla_jobs.worker.misfits import Misfits
from sqla_jobs.worker.sessions import step_connections
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


def met(session: Session) -> int:
    """How often jobs were claimed."""
    session.rollback()
    return session.scalar(text("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM sqla_runs_id_seq")) or 0


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


def add_process(session: Session, jobs: Jobs[Any], **values: Any) -> None:
    session.add(jobs.Process(host="web", queues={"default": 1}, **values))
    session.commit()


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_old_code_cannot_run_is_left_to_new_code_uncharged(
    session: Session, old: Jobs[Any], new: Jobs[Any], kind: str
) -> None:
    job = enqueue(new, session, kind, a=1, b="two")
    with old.worker():
        wait_until(lambda: met(session) >= 1 and now(session, new, job) == ("queued", 0, []))
        also = enqueue(new, session, "plain", a=1)
        wait_until(lambda: now(session, new, also) == ("succeeded", 1, ["succeeded"]))
        with new.worker():
            wait_until(lambda: now(session, new, job) == ("succeeded", 1, ["succeeded"]))
    assert job.runs[0].result == "1 two"
    assert met(session) in (3, 4), "a look that is on its way as the job is given back may claim it once more"


def test_why_doctor_and_status_know_a_task_that_no_live_worker_knows(
    session: Session, old: Jobs[Any], new: Jobs[Any]
) -> None:
    job = enqueue(new, session, "added")
    with old.worker():
        (told,), (why,) = found(session, new), new.why(session, job)
        assert "task added" in told
        assert "no live worker of its queue knows it, and 1 job is waiting for it" in told
        assert why == (
            "No live worker that serves queue 'default' knows the task 'added': start one whose code declares it."
        )
        with new.worker():
            wait_until(lambda: now(session, new, job) == ("succeeded", 1, ["succeeded"]))


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_where_no_live_worker_takes_it_the_attempt_fails_by_its_policy(
    session: Session, old: Jobs[Any], new: Jobs[Any], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(misfits, "_FITS_NOWHERE", 0.0)
    job = enqueue(new, session, kind, a=1, b="two")
    old.worker().drain()
    assert now(session, new, job) == ("failed", 1, ["failed"])
    assert job.runs[0].error_type == "sqla_jobs.errors.ArgumentsError"


@pytest.mark.parametrize(
    ("tasks", "is_left"),
    [
        (None, True),
        ({"plain": {"required": ["a", "b"], "optional": [], "types": "x"}}, True),
        ({"plain": {"required": ["a"], "optional": [], "types": "x"}}, False),
    ],
)
def test_who_may_take_it_is_what_live_workers_tell(
    session: Session, database: Engine, old: Jobs[Any], monkeypatch: pytest.MonkeyPatch, tasks: Any, is_left: bool
) -> None:
    add_process(session, old, tasks=tasks)
    add_process(session, old, kind="clock", tasks=None)
    job = Claimed(1, 1, uuid.uuid4(), "plain", "default", 0, 1, '{"a": 1, "b": "two"}', 1, 25, None, 0.0, None, 0.0)
    takes = {"plain": old.tasks["plain"]._declaration.takes}
    with ThreadPoolExecutor(1) as threads:
        parts = Misfits(old._models, takes, SetAside(), step_connections(database, threads))
    attempt, error = Attempt(job, time.monotonic()), ArgumentsError("b does not fit")
    with pytest.raises(NotBegun):
        parts.meet(attempt, error)
    monkeypatch.setattr(misfits, "_FITS_NOWHERE", 0.0)
    if is_left:
        with pytest.raises(NotBegun):
            parts.meet(attempt, error)
    else:
        parts.meet(attempt, error)


@pytest.mark.slow
def test_a_job_that_did_not_fit_costs_nothing_once_it_is_gone(session: Session, old: Jobs[Any], new: Jobs[Any]) -> None:
    job = enqueue(new, session, "plain", a=1, b="two")
    asked: list[str] = []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    def beaten() -> Any:
        session.rollback()
        return session.scalar(select(old.Process.heartbeat_at))

    with old.worker(heartbeat=0.5):
        wait_until(lambda: met(session) >= 1 and now(session, new, job) == ("queued", 0, []))
        session.delete(job)
        session.commit()
        event.listen(Engine, "before_cursor_execute", note)
        try:
            for _ in range(3):
                last = beaten()
                wait_until(lambda: beaten() != last)  # noqa: B023
        finally:
            event.remove(Engine, "before_cursor_execute", note)
    assert not [statement for statement in asked if "sqla_processes.tasks" in statement]


def test_of_many_jobs_that_do_not_fit_most_come_back_later_and_others_go_on(
    session: Session, old: Jobs[Any], new: Jobs[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(misfits, "MOST_PASSED_OVER", 3)
    new.tasks["plain"].enqueue_many(session, ({"a": n, "b": "two"} for n in range(10)))
    last = enqueue(new, session, "plain", a=1)
    with old.worker():
        wait_until(lambda: now(session, new, last)[0] == "succeeded")
        counts = "SELECT state, count(*) FROM sqla_jobs GROUP BY state"
        wait_until(lambda: dict(session.execute(text(counts)).all()) == {"queued": 3, "scheduled": 7, "succeeded": 1})
        soon = "SELECT count(*) FROM sqla_jobs WHERE state = 'scheduled' AND run_at < now() + interval '20 s'"
        assert session.scalar(text(soon)) == 0
    assert met(session) == 11
