"""For the tests of applications: run what is due in the test's own session and thread."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.orm import Session

from sqla_jobs.errors import JobsError
from sqla_jobs.execution.attempt import Attempt
from sqla_jobs.execution.executor import Executor
from sqla_jobs.jobs import Jobs
from sqla_jobs.queries import Claimed, Queries, RunEnd, processes
from sqla_jobs.queries.limits import declare
from sqla_jobs.rules.checks import check_seconds
from sqla_jobs.rules.wording import plural
from sqla_jobs.tasks.enqueue import AnySession, plain_session
from sqla_jobs.worker.gating import Gating, declared_limits

__all__ = ["Drained", "drain"]

_Claim = Callable[[Session, uuid.UUID, dict[str, int], Sequence[str]], list[Claimed]]


class Drained(int):
    """How many runs `drain` has run."""

    waiting: list[int]
    """The ids of the jobs that are due and wait behind a limit. Empty where limits were passed over."""

    def __new__(cls, runs: int, waiting: Sequence[int]) -> Drained:
        drained = super().__new__(cls, runs)
        drained.waiting = [*waiting]
        return drained


def drain(
    jobs: Jobs[Any],
    session: AnySession,
    *,
    queues: Iterable[str] | None = None,
    ahead: timedelta | float = 0.0,
    max_runs: int = 1000,
    limits: bool = False,
) -> Drained:
    """Run what is due, and what that enqueues, in this session and thread. Returns the number of runs.

    The real claim, execution and finish, each transactional task in a savepoint of `session`, which is
    never committed or rolled back as a whole: in a test whose transaction is rolled back, all of it is.
    `ahead` also runs what is due within that time from now, retries and delayed jobs, without waiting.
    `queues` limits it to some. Limits of tasks and queues are passed over, unless `limits` says to obey them: then
    what waits behind one is left, and the returned number's `waiting` names those jobs.
    A task that raises does so inside its run, recorded as ever.
    Raises `JobsError` where after `max_runs` there is still something due.
    """
    own = plain_session(session)
    seconds = check_seconds("ahead", ahead)
    jobs.tasks.load()
    queries = Queries(jobs.models)
    executor = Executor(jobs.tasks, _Savepoints(own, queries), middleware=jobs.hooks.middleware)
    chosen = None if queues is None else list(queues)
    runs = 0
    claim = _within_limits(jobs, own, queries) if limits else queries.claim_whatever_the_limits
    with _process(jobs, own) as process_id:
        while (job := _next(jobs, own, queries, claim, process_id, chosen, seconds)) is not None:
            if runs == max_runs:
                raise JobsError(
                    f"after {plural(runs, 'run')} job {job.job_id} ({job.task}) is still due; does it enqueue itself?"
                )
            held = Attempt(job, time.monotonic())
            end = executor.execute(held)
            if end is not None:
                queries.finish(own, [end])
            runs += 1
            _expire_jobs(jobs, own)
    return Drained(runs, _waiting(jobs, own) if limits else [])


@contextmanager
def _process(jobs: Jobs[Any], session: Session) -> Generator[uuid.UUID]:
    """A process that claims may be made for, in the session's transaction."""

    def connection() -> Connection:
        return session.connection(bind_arguments={"mapper": jobs.Process})

    session.flush()
    process_id = processes.register(connection(), jobs.models, kind="test", queues={}, lease=30.0)
    try:
        yield process_id
    finally:
        if session.is_active:
            processes.unregister(connection(), jobs.models, process_id)


class _Savepoints:
    """Transactions that are savepoints in the caller's, in which nothing is set."""

    def __init__(self, session: Session, queries: Queries) -> None:
        self._session = session
        self._queries = queries

    @contextmanager
    def begin(self) -> Generator[Session]:
        """The run's savepoint; a task that itself commits or rolls back has ended it already."""
        savepoint = self._session.begin_nested()
        try:
            yield self._session
        except BaseException:
            if savepoint.is_active:
                savepoint.rollback()
            raise
        if savepoint.is_active:
            savepoint.commit()

    def commit(self, session: Session, end: RunEnd) -> None:
        self._queries.store_last_progress(session, end)
        self._queries.succeed(session, end)


def _next(
    jobs: Jobs[Any],
    session: Session,
    queries: Queries,
    claim: _Claim,
    process_id: uuid.UUID,
    queues: Iterable[str] | None,
    ahead: float,
) -> Claimed | None:
    session.flush()
    while queries.promote(session, ahead=ahead).promoted:
        pass
    job = jobs.Job
    waiting = session.scalars(select(job.queue).where(job.state == "queued").distinct().order_by(job.queue))
    for queue in waiting.all() if queues is None else queues:
        if claimed := claim(session, process_id, {queue: 1}, list(jobs.tasks)):
            _expire_jobs(jobs, session)
            return claimed[0]
    return None


def _within_limits(jobs: Jobs[Any], session: Session, queries: Queries) -> _Claim:
    """Claims as workers do, limits included; these hold for as long as the session's transaction."""
    declarations = {name: jobs.tasks[name].declaration for name in jobs.tasks}
    declare(session, jobs.models, list(declarations), declared_limits(declarations.values()))

    def claim(session: Session, process_id: uuid.UUID, slots: dict[str, int], tasks: Sequence[str]) -> list[Claimed]:
        ((queue, _),) = slots.items()
        Gating(queries, declarations, [queue]).look(partial(_savepoint, session, queries), time.monotonic())
        return queries.claim(session, process_id, slots, tasks) or queries.claim_limited.inside(
            session, process_id, queue, tasks
        )

    return claim


@contextmanager
def _savepoint(session: Session, queries: Queries) -> Generator[Connection]:
    with session.begin_nested():
        yield queries.connection(session)


def _waiting(jobs: Jobs[Any], session: Session) -> list[int]:
    due = select(jobs.Job.id).where(jobs.Job.state == "queued").order_by(jobs.Job.id)
    return [*session.scalars(due)]


def _expire_jobs(jobs: Jobs[Any], session: Session) -> None:
    """What the session knows of jobs was changed below it."""
    for entity in list(session.identity_map.values()):
        if isinstance(entity, jobs.Job) and not session.is_modified(entity):
            session.expire(entity)
