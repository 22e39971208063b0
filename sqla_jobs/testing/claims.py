"""Lets a test claim jobs in its own transaction, with the workers' statements. Nothing of this is committed."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session, SessionTransaction

from sqla_jobs.database.async_sessions import read_anew
from sqla_jobs.database.commits import is_waiting, write_now
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.version import check_version
from sqla_jobs.queries import Claimed, Queries, RunEnd, processes
from sqla_jobs.queries.limits import declare
from sqla_jobs.queries.steps import NewStep
from sqla_jobs.testing.awaiting import around_test
from sqla_jobs.worker.backfill import Backfill, declared_limits

_FIRST = "{}"
"""The cursor before the first group of a queue."""
Claim = Callable[[Session, uuid.UUID, dict[str, int], Sequence[str]], list[Claimed]]


def connection_of(jobs: Jobs[Any], session: Session) -> sa.Connection:
    """Return the session's connection to the jobs' database."""
    return session.connection(bind_arguments={"mapper": jobs.Job})


def known_tasks(jobs: Jobs[Any], session: Session) -> list[str]:
    """Return the names of all tasks. Raises the errors with which a worker refuses to start."""
    names = jobs.tasks.complete()
    check_version(connection_of(jobs, session), jobs._models.tables["jobs"])
    _ = [*declared_limits(jobs.tasks[name]._declaration for name in names)]
    return names


@contextmanager
def process(jobs: Jobs[Any], session: Session) -> Generator[uuid.UUID]:
    """Register a process for claims, in the session's transaction."""
    write_now(session)
    process_id = processes.register(connection_of(jobs, session), jobs._models, kind="test", queues={}, lease=30.0)
    try:
        yield process_id
    finally:
        if session.is_active:
            processes.unregister(connection_of(jobs, session), jobs._models, process_id)


def resolve(session: Session, queries: Queries) -> None:
    """Queue or cancel the blocked jobs that wait for jobs that have ended."""
    while (watchers := queries.lock_watchers(session, queries.look_for_blocked(session).ended)).ids:
        if all(one.state == "later" for one in queries.settle(session, watchers.ids, watchers.batches)):
            return  # another session of the test has locked the rest


def promote(session: Session, queries: Queries, *, ahead: float) -> None:
    """Queue the jobs that are due within `ahead` seconds."""
    while queries.promote(session, ahead=ahead).promoted:
        pass


def queues_of_waiting(jobs: Jobs[Any], session: Session) -> list[str]:
    """Return the queues with queued jobs."""
    job = jobs.Job
    found = session.scalars(sa.select(job.queue).where(job.state == "queued").distinct().order_by(job.queue))
    return list(found)


def within_limits(jobs: Jobs[Any], session: Session, queries: Queries) -> Claim:
    """Store the declared limits in the session's transaction, and return a claim that obeys them.

    Like a worker's claim, it takes jobs from each group in turn.
    """
    declarations = {name: jobs.tasks[name]._declaration for name in jobs.tasks}
    declare(session, jobs._models, list(declarations), declared_limits(declarations.values()))
    cursors: dict[str, str] = {}

    def claim(session: Session, process_id: uuid.UUID, slots: dict[str, int], tasks: Sequence[str]) -> list[Claimed]:
        ((queue, _),) = slots.items()
        Backfill(queries, partial(_savepoint, session, queries), declarations, [queue]).look()
        claimed, is_whole_round = queries.claim(session, process_id, slots, tasks), False
        while not claimed:
            cursor = cursors.get(queue, _FIRST)
            is_whole_round = is_whole_round or cursor == _FIRST
            claimed, cursors[queue] = queries.claim_limited.inside(session, process_id, queue, tasks, cursor=cursor)
            if is_whole_round and cursors[queue] == _FIRST:
                break
        return claimed

    return claim


@contextmanager
def _savepoint(session: Session, queries: Queries) -> Generator[sa.Connection]:
    with session.begin_nested():
        yield queries.connection(session)


def expire_rows(jobs: Jobs[Any], session: Session) -> None:
    """Expire the session's jobs and schedules, since statements have changed their rows."""
    for entity in list(session.identity_map.values()):
        if isinstance(entity, (jobs.Job, jobs.Schedule)) and not session.is_modified(entity):
            session.expire(entity)


class _Part(NamedTuple):
    """What of a run a savepoint covers: all of it, or one step."""

    savepoint: SessionTransaction
    changes_before: int
    """The number of changed rows in the test's transaction when the savepoint began."""


class Savepoints:
    """The transactions of runs in tests: savepoints in the test's transaction. They change no connection settings."""

    isolation: str = "READ COMMITTED"
    rows_may_come: bool = False

    def __init__(self, session: Session, models: Models[Any], queries: Queries) -> None:
        self._session = session
        self._queries = queries
        self._entity = models.Job
        self._is_inside = False

    def check_constraints(self) -> None:
        """Raise `IntegrityError` if a row violates a deferred constraint, as a commit does.

        The rollback defers the constraints again.
        """
        self._session.flush()
        with self._connection.begin_nested() as savepoint:
            self._connection.execute(sa.text("SET CONSTRAINTS ALL IMMEDIATE"))
            savepoint.rollback()

    @contextmanager
    def begin(self) -> Generator[Session]:
        """Open the run's savepoint. At the end, close it, unless the task itself has committed or rolled back."""
        self._renew()
        try:
            yield self._session
            savepoint = self._part.savepoint
            if savepoint.is_active:
                savepoint.commit()
        except BaseException:
            if self._is_open(self._part.savepoint):
                self._part.savepoint.rollback()
            raise
        finally:
            self._is_inside = False

    def has_written(self, session: Session) -> bool:
        """Return whether the session has unflushed changes, or rows have been changed since the savepoint began."""
        is_changed = session.new or session.deleted or any(map(session.is_modified, session.dirty))
        return bool(is_changed) or is_waiting(session) or self._changes() != self._part.changes_before

    def commit_part(self, session: Session, step: NewStep) -> str | None:
        """Store the row of the step, release the savepoint, and begin another. Return the result as stored."""
        write_now(session)
        self.check_constraints()
        result = self._queries.steps.record_in_session(self._connection, step)
        self._go_on(self._part.savepoint.commit)
        return result

    def commit(self, session: Session, end: RunEnd) -> None:
        """Store the end of the run. The savepoint ends after it."""
        self.check_constraints()
        self._queries.store_before_end(session, end)
        self._queries.succeed(session, end)

    def undo_part(self, session: Session) -> None:
        """Roll the savepoint back, and begin another."""
        self._go_on(self._part.savepoint.rollback)

    @contextmanager
    def outside(self) -> Generator[sa.Connection]:
        """Yield the connection for writes outside the run's savepoint. That savepoint must not contain writes."""
        if not self._is_inside:
            with self._session.begin_nested():
                yield self._connection
            return
        self._part.savepoint.commit()
        try:
            with self._session.begin_nested():
                yield self._connection
        finally:
            self._renew()

    @contextmanager
    def once(self) -> Generator[sa.Connection]:
        """Yield the connection, for one statement."""
        yield self._connection

    def _go_on(self, end: Callable[[], None]) -> None:
        if self._is_open(self._part.savepoint):
            end()
        if self._session.expire_on_commit:
            self._session.expire_all()
        self._renew()
        if around_test(self._session) is not None:
            read_anew(self._session)

    def _renew(self) -> None:
        self._part = _Part(self._session.begin_nested(), self._changes())
        self._is_inside = True

    def _changes(self) -> int:
        return int(self._connection.scalar(_CHANGES) or 0)

    def around(self, session: Session) -> Any:
        """Return the `AsyncSession` that the test's session belongs to."""
        return around_test(session)

    @property
    def _connection(self) -> sa.Connection:
        return self._session.connection(bind_arguments={"mapper": self._entity})

    def _is_open(self, savepoint: SessionTransaction) -> bool:
        """Return whether the savepoint is still open. After a failed flush it is still open, though not active."""
        innermost = self._session.get_nested_transaction()
        while innermost is not None and innermost is not savepoint:
            innermost = innermost.parent
        return innermost is savepoint


_CHANGES = sa.text("SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_xact_user_tables")
"""The number of rows that the transaction has inserted, changed or deleted."""
