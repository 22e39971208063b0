"""Every statement of a job's way through a worker, and the only place that says FOR UPDATE.

Each write to a running job names the lease it expects and tells which rows it changed. The statements
of the hot path are built once for each `Queries` and load no ORM objects. All times are the server's.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import Any

import psycopg
from sqlalchemy import Connection
from sqlalchemy.orm import Session

from sqla_jobs.database.engines import driver, is_useless_after
from sqla_jobs.errors import LeaseLost
from sqla_jobs.models.mapping import Models
from sqla_jobs.queries import begin, claim, finish, rescue, succeed
from sqla_jobs.queries import due as waiting
from sqla_jobs.queries import leases as held
from sqla_jobs.queries.commit import Commit, Ending
from sqla_jobs.queries.expressions import RawStatement, Tables
from sqla_jobs.queries.values import (
    ALL,
    EVERYWHERE,
    MANY,
    PRIORITIES,
    Among,
    Claimed,
    Lease,
    Promotion,
    RunEnd,
    numbers,
    texts,
)
from sqla_jobs.rules.outcomes import RunOutcome

__all__ = ["EVERYWHERE", "MANY", "PRIORITIES", "Among", "Claimed", "Lease", "Promotion", "Queries", "RunEnd"]

log = logging.getLogger("sqla_jobs.queries")

_CLAIM_ORDER = attrgetter("priority", "position")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=64)
def _names(given: tuple[str, ...]) -> str:
    return texts([*given])


class Queries:
    """The statements over one set of models, in `schema` where these name none: else wherever a session finds them."""

    def __init__(self, models: Models[Any], schema: str | None = None) -> None:
        self._tables = Tables(models, schema)
        self._on = {"mapper": models.Job}

    def _run(self, connection: Connection | Session, statement: Any, values: dict[str, Any]) -> Any:
        if isinstance(connection, Session):
            return connection.execute(statement, values, bind_arguments=self._on)
        return connection.execute(statement, values)

    def claim(
        self,
        connection: Connection | Session,
        process_id: uuid.UUID,
        slots: dict[str, int],
        tasks: Sequence[str],
        floors: Mapping[str, Sequence[int]] | None = None,
        among: Among = ALL,
    ) -> list[Claimed]:
        """Take at most `slots[queue]` queued jobs of each queue that is not paused, in claim order.

        Those of a priority lie above its place in `floors[queue]`, where that is given. A process without a
        row gets none. Raises psycopg's errors too, where the connection is lost.
        """
        values = {
            "process_id": process_id,
            "tasks": _names(tuple(tasks)),
            "lanes": _names(tuple(slots)),
            "slots": numbers(slots.values()),
            "floors": texts([numbers((floors or {}).get(queue, EVERYWHERE)) for queue in slots]),
            **among.parameters(),
        }
        rows = self._run_raw(connection, self._claim, values)
        again = [job_id for job_id, *_, was_started in rows if was_started]
        elapsed = dict(self._run(connection, self._elapsed, {"ids": again}).all()) if again else {}
        claimed = [
            Claimed._make((job_id, run_id, process_id, *rest, _moment(scheduled_for), elapsed.get(job_id, 0.0)))
            for job_id, run_id, *rest, scheduled_for, _ in rows
        ]
        return sorted(claimed, key=_CLAIM_ORDER)

    def _run_raw(self, connection: Connection | Session, statement: RawStatement, values: dict[str, Any]) -> list[Any]:
        if isinstance(connection, Connection):
            try:
                return statement.execute(connection, values).fetchall()
            except psycopg.Error as error:
                if driver(connection).closed or is_useless_after(error):
                    connection.invalidate(error)
                    raise
                if driver(connection).info.transaction_status == psycopg.pq.TransactionStatus.INERROR:
                    raise  # asked again it would say that the transaction is aborted, and not why
                if error.sqlstate is None:
                    raise  # the server did not refuse it: what it did may be committed
                log.debug("asked again in SQLAlchemy's way, which knows what follows for its pool: %s", error)
        return list(self._run(connection, statement.origin, values).all())

    @cached_property
    def _elapsed(self) -> Any:
        return claim.elapsed(self._tables)

    @cached_property
    def _claim(self) -> RawStatement:
        return RawStatement(claim.claim(self._tables))

    def promote(
        self,
        connection: Connection | Session,
        *,
        ahead: float = 0.0,
        limit: int = MANY,
        queues: Collection[str] = (),
        among: Among = ALL,
    ) -> Promotion:
        """Queue at most `limit` scheduled jobs that are due, or will be within `ahead` seconds.

        Counts the workers that serve any of `queues`, too.
        """
        values = {"ahead": ahead, "limit": limit, "queues": _names(tuple(queues)), **among.parameters()}
        ((count, due_in, workers),) = self._run_raw(connection, self._promote, values)
        return Promotion(count, 0.0 if count == limit else due_in, workers)

    @cached_property
    def _promote(self) -> RawStatement:
        return RawStatement(claim.promote(self._tables))

    def finish(self, connection: Connection | Session, ends: Sequence[RunEnd]) -> dict[int, str]:
        """Store the ends of attempts whose lease still stands; never waits for a locked row.

        Returns by run id what became of those that were not stored: "locked" (somebody holds the row: try
        again); "known" (its run is there already, an earlier commit of ours went through); "lost". Where not
        all that went well could be stored at once, those that were are "known" too.
        """
        went_well, others = _apart(ends)
        if went_well:
            stored = self._run(connection, self._succeed_many, succeed.many(went_well)).rowcount
            if stored < len(went_well):
                others = list(ends)
        return self.finish_any(connection, others) if others else {}

    def finish_any(self, connection: Connection | Session, ends: Sequence[RunEnd]) -> dict[int, str]:
        """The same by the one statement that knows all ends, and gives a run a new id where its own is taken."""
        return dict(self._run(connection, self._finish, finish.parameters(ends)).all())

    @cached_property
    def _succeed_many(self) -> Any:
        return succeed.succeed_many(self._tables)

    @cached_property
    def _finish(self) -> Any:
        return finish.finish(self._tables)

    def succeed(self, session: Session, end: RunEnd) -> None:
        """Store inside its own transaction that an attempt went well, waiting for the row. Raises `LeaseLost`."""
        if self._run(session, self._succeed_one, succeed.one(end)).rowcount != 1:
            raise LeaseLost

    @cached_property
    def _succeed_one(self) -> Any:
        return succeed.succeed_one(self._tables)

    def begin(self, connection: Connection, *, noticed_within: float, patience: float) -> bool:
        """Begin the transaction of a task on a connection of the application's, in one round trip. False: read-only.

        The server notices within `noticed_within` seconds, or a minute, that the client's host is gone.
        Raises psycopg's errors, also after `patience` seconds without an answer.
        """
        return begin.begin(driver(connection), noticed_within=noticed_within, patience=patience)

    def ending(self, session: Session, end: RunEnd) -> AbstractContextManager[Ending]:
        """Inside, committing such a session also stores the end of its attempt. Raises `LeaseLost`."""
        return self._commit.storing(self.connection(session), end)

    @cached_property
    def _commit(self) -> Commit:
        return Commit(self._tables)

    def connection(self, session: Session) -> Connection:
        """The session's connection to the database of the jobs."""
        return session.connection(bind_arguments=self._on)

    def rescue(
        self, connection: Connection | Session, *, limit: int = MANY, among: Among = ALL
    ) -> list[tuple[int, str]]:
        """Take back running jobs without a live process, each with a `lost` run: ids and new states."""
        return list(self._run(connection, self._rescue, {"limit": limit, **among.parameters()}).all())

    @cached_property
    def _rescue(self) -> Any:
        return rescue.rescue(self._tables)

    def heartbeats(self, connection: Connection) -> dict[uuid.UUID, tuple[int, float]]:
        """Of each process its last heartbeat, as a number that tells it from others, and its lease in seconds."""
        rows = self._run(connection, self._heartbeats, {})
        return {process_id: (heartbeat, lease) for process_id, heartbeat, lease in rows}

    @cached_property
    def _heartbeats(self) -> Any:
        return rescue.heartbeats(self._tables)

    def delete_expired(self, connection: Connection | Session, silent: Mapping[uuid.UUID, int]) -> list[uuid.UUID]:
        """Delete the rows of processes that have not beaten since the heartbeat given for each; returns their ids."""
        values = {"process_ids": list(silent), "heartbeats": list(silent.values())}
        return list(self._run(connection, rescue.delete_expired(self._tables), values).scalars())

    def sign_off(self, connection: Connection, process_id: uuid.UUID) -> bool:
        """Delete the row of a process that ended. False: a claim of its own is still under way at the server."""
        return bool(connection.scalar(rescue.sign_off(self._tables), {"process_id": process_id}))

    def beat(self, connection: Connection, process_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, bool]:
        """Say that these processes live. Returns those whose leases stand, and whether that could be said of each."""
        return dict(self._run(connection, self._beat, {"process_ids": list(process_ids)}).all())

    @cached_property
    def _beat(self) -> Any:
        return rescue.beat(self._tables)

    def unknown_leases(
        self, connection: Connection, process_id: uuid.UUID, known: Collection[int], *, age: float
    ) -> list[Lease]:
        """Leases of this process, older than `age` seconds, that it does not know of."""
        values = {"process_id": process_id, "known": list(known), "age": age}
        return [Lease(*row) for row in self._run(connection, self._unknown_leases, values)]

    @cached_property
    def _unknown_leases(self) -> Any:
        return held.unknown_leases(self._tables)

    def leases(self, connection: Connection, process_id: uuid.UUID, known: Collection[int] = ()) -> list[Lease]:
        """All leases of a process but those `known`."""
        values = {"process_id": process_id, "known": list(known)}
        return [Lease(*row) for row in self._run(connection, held.leases(self._tables), values)]

    def cancel_requests(self, connection: Connection, process_id: uuid.UUID, job_ids: Collection[int]) -> set[int]:
        """The run ids this process holds whose job somebody asked to cancel."""
        return set(
            self._run(connection, self._cancel_requests, {"process_id": process_id, "ids": list(job_ids)}).scalars()
        )

    @cached_property
    def _cancel_requests(self) -> Any:
        return held.cancel_requests(self._tables)

    def store_progress(
        self, connection: Connection | Session, progress: Sequence[tuple[Lease | Claimed, float, str | None]]
    ) -> None:
        """Show how far these attempts are, where their lease still stands and their row is free."""
        self._run(connection, self._store_progress, held.progress_parameters(progress))

    @cached_property
    def _store_progress(self) -> Any:
        return held.store_progress(self._tables)

    def is_due(self, connection: Connection, queues: Sequence[str], tasks: Sequence[str], among: Among = ALL) -> bool:
        """Whether a claim or a promotion would find something now; rows locked by others do not count."""
        looks = waiting.is_due(self._tables, queues, tasks)
        return any(self._run(connection, rows, among.parameters()).first() is not None for rows in looks)

    def unknown_to(
        self, connection: Connection | Session, queues: Sequence[str], tasks: Sequence[str]
    ) -> dict[str, int]:
        """How many of the first 10,000 jobs waiting in `queues` are of each task not in `tasks`."""
        return dict(self._run(connection, waiting.unknown_to(self._tables, queues, tasks), {}).all())


def _moment(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else _EPOCH + timedelta(microseconds=microseconds)


def _apart(ends: Sequence[RunEnd]) -> tuple[list[RunEnd], list[RunEnd]]:
    """Those that went well, under leases of one process; and the rest, such as are of a process taken for dead."""
    went_well: list[RunEnd] = []
    others: list[RunEnd] = []
    for end in ends:
        is_alike = not went_well or end.lease.process_id == went_well[0].lease.process_id
        (went_well if is_alike and end.outcome.kind is RunOutcome.succeeded else others).append(end)
    return went_well, others
