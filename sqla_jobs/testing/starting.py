"""Assertions about the jobs that would start now. The assertions make real claims and roll them back."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session
from typing_extensions import deprecated

from sqla_jobs.actions.change import id_of
from sqla_jobs.database.commits import write_now
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.queries import Queries
from sqla_jobs.tasks.sessions import AnySession, plain_session
from sqla_jobs.testing.claims import (
    check_known,
    check_queues,
    known_tasks,
    process,
    promote,
    queues_of_waiting,
    within_limits,
)
from sqla_jobs.testing.given import check_jobs

J = TypeVar("J", bound=JobMixin)
DRAIN: str = (
    "it goes in the next release: call drain(jobs, session, limits=True), and look at its .waiting and at jobs.why"
)


@deprecated(DRAIN)
def startable(session: AnySession, jobs: Jobs[J], /, *, queues: Iterable[str] | None = None) -> list[J]:
    """Return the jobs that workers with free slots would start now, in the order of their starts. No job starts.

    Jobs that are not due, are paused, have an undeclared task or wait behind a limit are left out. Running jobs count
    against their limits; `make_job(session, task, state="running")` adds such a job.

    - `session`: the test's session; it is flushed, and otherwise unchanged.
    - `jobs`: the `Jobs`.
    - `queues`: the names of the queues to look at; by default all.

    Raises `ConfigurationError` for a queue that no task, job or schedule has, and if a worker would refuse to start.
    """
    own = plain_session(session, "startable(session, jobs)")
    with _all_started(own, jobs, queues) as ids:
        pass
    rows: Any = select(jobs.Job).where(jobs.Job.id.in_(ids))
    known = {job.id: job for job in own.scalars(rows)}
    return [known[job_id] for job_id in ids]


@deprecated(DRAIN)
def assert_starts(session: AnySession, jobs: Jobs[J], job: J | int, /) -> None:
    """Assert that a job is among those that are `startable`.

    - `session`, `jobs`: as for `startable`.
    - `job`: the job, or its id.

    Otherwise raises an `AssertionError` that explains why the job waits. Raises the errors of `startable`, too.
    """
    __tracebackhide__ = True
    own = plain_session(session, "assert_starts(session, jobs, job)")
    job_id, why = id_of(own, job), list[str]()
    with _all_started(own, jobs, None) as ids:
        if job_id not in ids:
            why = jobs.why(own, job_id)
    if why:
        raise AssertionError(f"job {job_id} does not start now:{_listed(why)}")


@deprecated(DRAIN)
def assert_waits(session: AnySession, jobs: Jobs[J], job: J | int, /, *, because: str = "") -> None:
    """Assert that `startable` does not return the job, and that `jobs.why` has a reason that contains `because`.

    - `session`, `jobs`: as for `startable`.
    - `job`: the job, or its id.
    - `because`: a part of the expected reason.

    The reasons are those that remain once every startable job has started.

    Otherwise raises an `AssertionError` that shows the reasons. Raises the errors of `startable`, too.
    """
    __tracebackhide__ = True
    own = plain_session(session, "assert_waits(session, jobs, job)")
    job_id = id_of(own, job)
    with _all_started(own, jobs, None) as ids:
        why = jobs.why(own, job_id)
    if job_id in ids:
        raise AssertionError(f"job {job_id} starts now, with {len(ids) - 1} others")
    if not any(because in reason for reason in why):
        raise AssertionError(f"job {job_id} waits, but not because of {because!r}:{_listed(why)}")


@contextmanager
def _all_started(session: Session, jobs: Jobs[Any], queues: Iterable[str] | None) -> Generator[list[int]]:
    """Start all startable jobs, yield their ids, and roll back.

    Raises the errors with which a worker refuses to start.
    """
    check_jobs(jobs)
    known_tasks(jobs, session)
    queries = Queries(jobs._models)
    started: list[int] = []
    write_now(session)
    savepoint = session.begin_nested()
    try:
        promote(session, queries, ahead=0.0)
        names = queues_of_waiting(jobs, session) if queues is None else check_queues(queues)
        check_known(jobs, session, names)
        served = dict.fromkeys(session.scalars(select(jobs.Job.queue).distinct()), 1)
        with process(jobs, session, kind="worker", queues=served) as process_id:
            claim = within_limits(jobs, session, queries)
            for name in names:
                while claimed := claim(session, process_id, {name: 1}, list(jobs.tasks)):
                    started += [one.job_id for one in claimed]
            yield started
    finally:
        savepoint.rollback()


def _listed(sentences: Iterable[str]) -> str:
    return "".join(f"\n  {sentence}" for sentence in sentences)
