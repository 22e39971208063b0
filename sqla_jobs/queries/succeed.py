"""Storage of successful ends, as cheaply as possible. `finish` stores the ends that these statements skip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Double,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    cast,
    insert,
    literal_column,
    null,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from sqla_jobs.errors import LeaseLost
from sqla_jobs.queries.expressions import (
    Tables,
    array_of,
    committed_to_disk,
    each_locked,
    leased,
    row_held,
    seconds,
    unnest_text,
    waiting_at_most,
)
from sqla_jobs.queries.statement import Statement
from sqla_jobs.queries.values import RunEnd, in_order, numbers, texts

_RUN_COLUMNS = ["id", "job_id", "attempt", "process_id", "started_at", "finished_at", "outcome", "result"]
_PROCESS = bindparam("lease_process_id", type_=Uuid)


class SucceedMany(Statement):
    """Store ends whose lease is still valid and whose row is not locked. The row count is the number of stored ends."""

    def __call__(self, connection: Connection | Session, ends: Sequence[RunEnd]) -> int:
        """Store the ends of successful runs of one process. Return the number of stored ends."""
        leases, outcomes, started, finished, _ = zip(*in_order(ends), strict=True)
        values = {
            "job_ids": numbers([lease.job_id for lease in leases]),
            "run_ids": numbers([lease.run_id for lease in leases]),
            "lease_process_id": leases[0].process_id,
            "all_started": numbers([f"{moment:.6f}" for moment in started]),
            "all_finished": numbers([f"{moment:.6f}" for moment in finished]),
            "results": texts([outcome.result for outcome in outcomes]),
        }
        return int(self._run(connection, values).rowcount)

    def sql(self) -> Any:
        tables = self.tables
        jobs = tables.jobs
        ended = unnest_text(
            "ended",
            job_id=(case((committed_to_disk(), bindparam("job_ids", type_=Text))), BigInteger),
            run_id=("run_ids", BigInteger),
            started=("all_started", Double),
            finished=("all_finished", Double),
            result=("results", Text),
        )
        found: Any = select(
            jobs.c.ctid,
            (jobs.c.started_at + seconds(ended.c.started)).label("started_at"),
            (jobs.c.started_at + seconds(ended.c.finished)).label("finished_at"),
        ).where(leased(jobs, ended.c.job_id, ended.c.run_id, _PROCESS))
        mine = each_locked(ended, found, "mine")
        done = _done(
            jobs,
            mine.c.finished_at,
            and_(jobs.c.ctid == mine.c.ctid, jobs.c.ctid == any_(array_of(select(mine.c.ctid)))),
            [mine.c.run_id, jobs.c.id, jobs.c.attempt, mine.c.started_at, jobs.c.finished_at, mine.c.result],
        )
        return _runs(tables, done)


class SucceedOne(Statement):
    """Store the end of one run, waiting for the job's row if necessary. The row count is 0 if the lease is lost.

    `lock_timeout` limits the wait, in seconds. The limit then applies to the rest of the transaction.
    """

    def __init__(self, tables: Tables, lock_timeout: float | None = None) -> None:
        super().__init__(tables)
        self._lock_timeout = lock_timeout

    def __call__(self, session: Session | Connection, end: RunEnd) -> None:
        """Store a success inside the attempt's own transaction, waiting for the job's row if necessary.

        Raises `LeaseLost` and `RowHeld`.
        """
        with row_held():
            stored = self._run(session, self.parameters(end)).rowcount
        if stored != 1:
            raise LeaseLost

    @staticmethod
    def parameters(end: RunEnd) -> dict[str, Any]:
        """Return the parameters of the statement."""
        return {
            "job_id": end.lease.job_id,
            "run_id": end.lease.run_id,
            "lease_process_id": end.lease.process_id,
            "all_started": end.started,
            "all_finished": end.finished,
            "all_results": end.outcome.result,
        }

    def sql(self) -> Any:
        tables = self.tables
        jobs = tables.jobs
        run_id = bindparam("run_id", type_=BigInteger)
        started, finished = (seconds(bindparam(name, type_=Double)) for name in ("all_started", "all_finished"))
        prepared = and_(committed_to_disk(), waiting_at_most(self._lock_timeout))
        job_id = select(case((prepared, bindparam("job_id", type_=BigInteger)))).scalar_subquery()
        done = _done(
            jobs,
            jobs.c.started_at + finished,
            leased(jobs, job_id, run_id, _PROCESS),
            [
                cast(run_id, BigInteger).label("run_id"),
                jobs.c.id,
                jobs.c.attempt,
                (jobs.c.started_at + started).label("started_at"),
                jobs.c.finished_at,
                cast(bindparam("all_results", type_=Text), Text).label("result"),
            ],
        )
        return _runs(tables, done)


def _done(jobs: Any, finished_at: Any, which: Any, told: Sequence[Any]) -> Any:
    """Return a CTE that ends the jobs as succeeded."""
    values = {"state": literal_column("'succeeded'"), "current_run_id": null(), "process_id": null()}
    return update(jobs).values(finished_at=finished_at, **values).where(which).returning(*told).cte("done")


def _runs(tables: Tables, done: Any) -> Any:
    """Return a statement that inserts a run for each job that has ended."""
    rows = select(
        done.c.run_id,
        done.c.id,
        done.c.attempt,
        _PROCESS,
        done.c.started_at,
        done.c.finished_at,
        literal_column("'succeeded'"),
        cast(done.c.result, JSONB),
    )
    return insert(tables.runs).from_select(_RUN_COLUMNS, rows).execution_options(preserve_rowcount=True)
