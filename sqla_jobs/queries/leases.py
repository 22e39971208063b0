"""What a process asks about the jobs it holds, and writes to them while they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ARRAY, BigInteger, Double, Text, Uuid, any_, bindparam, func, select, update

from sqla_jobs.queries.expressions import Tables, leased, locked, seconds, unnest
from sqla_jobs.queries.values import Claimed, Lease


def leases(tables: Tables) -> Any:
    """Those of one process, but for those that are known."""
    jobs = tables.jobs
    return select(jobs.c.id, jobs.c.current_run_id, jobs.c.process_id).where(
        jobs.c.state == "running",
        jobs.c.process_id == bindparam("process_id"),
        jobs.c.current_run_id != func.all(bindparam("known", type_=ARRAY(BigInteger))),
    )


def unknown_leases(tables: Tables) -> Any:
    """Those that were given out by a claim whose answer never arrived."""
    return leases(tables).where(tables.jobs.c.started_at < func.statement_timestamp() - seconds(bindparam("age")))


def cancel_requests(tables: Tables) -> Any:
    """Those runs, of some jobs under leases of one process, whose job somebody asked to cancel."""
    jobs = tables.jobs
    return select(jobs.c.current_run_id).where(
        jobs.c.id == any_(bindparam("ids", type_=ARRAY(BigInteger))),
        jobs.c.process_id == bindparam("process_id"),
        jobs.c.cancel_requested_at.is_not(None),
    )


def store_progress(tables: Tables) -> Any:
    """The newest progress of some attempts."""
    jobs = tables.jobs
    told = unnest(
        "told",
        job_id=("job_ids", BigInteger),
        run_id=("run_ids", BigInteger),
        process_id=("process_ids", Uuid),
        fraction=("fractions", Double),
        message=("messages", Text),
    )
    held = leased(jobs, told.c.job_id, told.c.run_id, told.c.process_id)
    rows = select(jobs.c.id, told.c.fraction, told.c.message).select_from(jobs.join(told, held))
    mine = locked(rows, "mine", of=jobs)
    return update(jobs).where(jobs.c.id == mine.c.id).values(progress=mine.c.fraction, progress_message=mine.c.message)


def progress_parameters(progress: Sequence[tuple[Lease | Claimed, float, str | None]]) -> dict[str, Any]:
    """The parameters of `store_progress`."""
    return {
        "job_ids": [lease.job_id for lease, _, _ in progress],
        "run_ids": [lease.run_id for lease, _, _ in progress],
        "process_ids": [lease.process_id for lease, _, _ in progress],
        "fractions": [fraction for _, fraction, _ in progress],
        "messages": [message for _, _, message in progress],
    }
