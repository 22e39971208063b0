"""Live processes, and the rescue of jobs from dead processes."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    insert,
    literal_column,
    select,
    update,
)

from sqla_jobs.queries.expressions import (
    Tables,
    array_of,
    free_run_id,
    in_state,
    is_among,
    locked,
    message_of,
    messages,
    seconds,
    unnest,
    without_lease,
)
from sqla_jobs.queries.follow_ups import follow_ups
from sqla_jobs.queries.losses import gets_attempt_back, loss_backoff, state_after_loss
from sqla_jobs.queries.restrictions import freed_by
from sqla_jobs.queries.statement import SqlConnection, Statement
from sqla_jobs.queries.values import ALL, MANY, Among, Rescued

_ENDED = [literal_column(f"'{state}'", Text) for state in ("failed", "cancelled")]
_RUN_COLUMNS = [
    *("id", "job_id", "attempt", "process_id", "started_at", "finished_at"),
    *("outcome", "error_type", "error", "untold_at"),
]


class Rescue(Statement):
    """Rescue running jobs whose process has no row, and store a `lost` run for each job."""

    def __call__(self, connection: SqlConnection, *, limit: int = MANY, among: Among = ALL) -> list[Rescued]:
        return [Rescued(*row) for row in self._rows(connection, {"limit": limit, **among.parameters()})]

    def sql(self) -> Any:
        tables, jobs, runs = self.tables, self.tables.jobs, self.tables.runs
        now = func.statement_timestamp()
        rows = select(
            jobs.c.ctid, jobs.c.id, jobs.c.current_run_id, jobs.c.process_id, jobs.c.started_at, jobs.c.attempt
        )
        chosen = (
            rows.add_columns(loss_backoff(tables).label("delay"), state_after_loss(tables).label("state"))
            .where(is_orphaned(tables), is_among(jobs))
            .limit(bindparam("limit"))
        )
        orphan = locked(chosen, "orphan", of=jobs)
        done = (
            update(jobs)
            # skip a job that has been changed since the snapshot: if it was rescued and claimed again, it may belong
            # to a process that this statement cannot see
            .where(jobs.c.ctid == orphan.c.ctid, jobs.c.ctid == any_(array_of(select(orphan.c.ctid))))
            .values(
                attempt=func.greatest(jobs.c.attempt - case((gets_attempt_back(jobs, orphan.c.state), 1), else_=0), 0),
                **without_lease(tables, orphan.c.state, due_at=now + seconds(orphan.c.delay), finished_at=now),
            )
            .returning(
                jobs.c.id,
                jobs.c.state,
                jobs.c.task,
                jobs.c.queue,
                jobs.c.gates,
                jobs.c.on_failure,
                jobs.c.max_attempts,
                cast(jobs.c.headers, Text).label("headers"),
                orphan.c.current_run_id,
                orphan.c.attempt,
                orphan.c.process_id,
                orphan.c.started_at,
            )
            .cte("done")
        )
        stored = (
            insert(runs)
            .from_select(
                _RUN_COLUMNS,
                select(
                    free_run_id(tables, done.c.current_run_id),
                    done.c.id,
                    done.c.attempt,
                    done.c.process_id,
                    func.least(done.c.started_at, now),
                    now,
                    literal_column("'lost'"),
                    literal_column("'Lost'"),
                    func.concat("process ", done.c.process_id, " stopped before the job ended"),
                    now,
                ),
            )
            .cte("stored")
        )
        told = select(done.c.id, done.c.state, done.c.task, done.c.queue)
        told = told.add_columns(done.c.attempt, done.c.max_attempts, done.c.current_run_id, done.c.process_id)
        told = told.add_columns(done.c.headers)
        followed = follow_ups(tables, done)
        watcher = jobs.alias("watcher")
        is_watched = exists().where(in_state(watcher, "blocked"), watcher.c.waits_for == done.c.id)
        # an empty message wakes any worker, and any worker can queue the jobs that wait for an ended job
        ended = select(literal_column("''", Text).label("queue")).where(done.c.state.in_(_ENDED), is_watched)
        said = messages(tables, *freed_by(tables, done), select(message_of(followed)), ended)
        return told.where(said).add_cte(stored)


def is_orphaned(tables: Tables) -> Any:
    """Return the condition that the job is running and its process has no row."""
    jobs = tables.jobs
    return and_(jobs.c.state == "running", jobs.c.process_id.not_in(select(tables.processes.c.id)))


class Heartbeats(Statement):
    """Read the last heartbeat of each process, in microseconds since 1970, and its lease in seconds."""

    def __call__(self, connection: SqlConnection) -> dict[uuid.UUID, tuple[int, float]]:
        return {process_id: (heartbeat, lease) for process_id, heartbeat, lease in self._rows(connection, {})}

    def sql(self) -> Any:
        processes = self.tables.processes
        return select(processes.c.id, _heartbeat(processes), processes.c.lease)


def _heartbeat(processes: Any) -> Any:
    return cast(func.extract("epoch", processes.c.heartbeat_at) * 1_000_000, BigInteger)


class DeleteExpired(Statement):
    """Delete the rows of processes whose heartbeat still equals the given value. Skip locked rows."""

    def __call__(self, connection: SqlConnection, silent: Mapping[uuid.UUID, int]) -> list[uuid.UUID]:
        """Return the ids of the deleted rows."""
        values = {"process_ids": list(silent), "heartbeats": list(silent.values())}
        return [process_id for (process_id,) in self._rows(connection, values)]

    def sql(self) -> Any:
        processes = self.tables.processes
        seen = unnest("seen", id=("process_ids", Uuid), heartbeat=("heartbeats", BigInteger))
        silent = and_(processes.c.id == seen.c.id, _heartbeat(processes) == seen.c.heartbeat)
        rows = select(processes.c.id).select_from(processes.join(seen, silent))
        free = rows.with_for_update(skip_locked=True, of=processes).cte("free").prefix_with("MATERIALIZED")
        gone = delete(processes).where(processes.c.id.in_(select(free.c.id))).returning(processes.c.id).cte("gone")
        # notify workers, since only the deleted processes knew when the retries of their jobs were due
        any_queue = select(literal_column("''", Text).label("queue")).where(exists().select_from(gone))
        return select(gone.c.id).where(messages(self.tables, any_queue))


class SignOff(Statement):
    """Delete the row of a process that ended."""

    def __call__(self, connection: SqlConnection, process_id: uuid.UUID) -> bool:
        """Return whether the row is gone.

        False means that a claim by the process is still in progress on the server.
        """
        ((is_gone,),) = self._rows(connection, {"process_id": process_id})
        return bool(is_gone)

    def sql(self) -> Any:
        processes = self.tables.processes
        rows = select(processes.c.id).where(processes.c.id == bindparam("process_id", type_=Uuid))
        free = rows.with_for_update(skip_locked=True).cte("free").prefix_with("MATERIALIZED")
        gone = delete(processes).where(processes.c.id.in_(select(free.c.id))).returning(processes.c.id).cte("gone")
        there, left = (select(func.count()).select_from(which).scalar_subquery() for which in (rows.subquery(), gone))
        return select(there == left)


class Beat(Statement):
    """Write the heartbeats of processes."""

    def __call__(self, connection: SqlConnection, process_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, bool]:
        """Return, for each process that has a row, whether its heartbeat was written.

        False means that the process's row is locked.
        """
        return dict(self._rows(connection, {"process_ids": list(process_ids)}))

    def sql(self) -> Any:
        processes = self.tables.processes
        rows = select(processes.c.id).where(processes.c.id == any_(bindparam("process_ids", type_=ARRAY(Uuid))))
        free = rows.with_for_update(skip_locked=True, key_share=True).cte("free").prefix_with("MATERIALIZED")
        beaten = (
            update(processes)
            .where(processes.c.id.in_(select(free.c.id)))
            .values(heartbeat_at=func.clock_timestamp())
            .returning(processes.c.id)
            .cte("beaten")
        )
        return rows.add_columns(processes.c.id.in_(select(beaten.c.id)))
