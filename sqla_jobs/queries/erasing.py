"""The erasure of personal data in jobs and their runs. The rows themselves remain."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Connection,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    delete,
    func,
    literal_column,
    null,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.models.mapping import Models
from sqla_jobs.queries.expressions import array_of, leased
from sqla_jobs.queries.statement import Statement
from sqla_jobs.queries.values import Claimed, Lease
from sqla_jobs.rules.redaction import ERASED_ARGS

ERASED_COLUMNS: dict[str, tuple[str, ...]] = {
    "jobs": ("args", "unique_key", "progress_message", "headers"),
    "runs": ("result", "error", "traceback"),
    "steps": ("result",),
}
"""The columns that are erased, by table. Signals that no run has received are deleted."""
_ERASED_ARGS: ColumnElement[Any] = literal_column(f"'{json.dumps(ERASED_ARGS)}'", JSONB)


def check_may_erase(connection: Connection, models: Models[Any]) -> None:
    """Raise `ConfigurationError` if this role may not erase jobs: no success that erases a job could be stored."""
    preparer = connection.dialect.identifier_preparer
    names = {noun: preparer.format_table(models.tables[noun]) for noun in (*ERASED_COLUMNS, "signals")}
    rights = [
        (func.has_column_privilege(names[noun], column, "UPDATE"), f"change {column} of {names[noun]}")
        for noun, columns in ERASED_COLUMNS.items()
        for column in columns
    ]
    for right, what in (*rights, (func.has_table_privilege(names["signals"], "DELETE"), f"delete {names['signals']}")):
        if not connection.scalar(select(right)):
            raise ConfigurationError(
                f"a task declares retention={{'succeeded': 'erase'}}, and this role may not {what}: grant what "
                "`sqla-jobs grants --worker ROLE` says about that, or leave that retention out"
            )


def erased_job() -> dict[str, Any]:
    """Return the column values of an erased job."""
    return {**dict.fromkeys(ERASED_COLUMNS["jobs"], null()), "args": _ERASED_ARGS}


def has_arguments(args: Any) -> ColumnElement[bool]:
    """Return the condition that arguments have not been erased. Version 0.1 replaced erased arguments by a text."""
    return and_(func.jsonb_typeof(args) == "object", args != _ERASED_ARGS)


def erased_with(tables: Mapping[str, Any], jobs: Any) -> list[CTE]:
    """Return CTEs that erase the runs, steps and signals of the jobs in the CTE `jobs`, which has a column `id`.

    `tables` holds the tables by name.
    """
    ids = array_of(select(jobs.c.id))
    runs, steps, signals = tables["runs"], tables["steps"], tables["signals"]
    return [
        update(runs)
        .where(runs.c.job_id == any_(ids))
        .values({runs.c[name]: null() for name in ERASED_COLUMNS["runs"]})
        .cte("of_runs"),
        update(steps)
        .where(steps.c.job_id == any_(ids))
        .values({steps.c[name]: null() for name in ERASED_COLUMNS["steps"]})
        .cte("of_steps"),
        delete(signals).where(signals.c.job_id == any_(ids)).cte("of_signals"),
    ]


def no_run_is_locked(runs: Any, jobs: Any) -> ColumnElement[bool]:
    """Lock the runs of a job, and return the condition that no other session has locked one of them."""
    of_job = select(runs.c.id).where(runs.c.job_id == jobs.c.id).correlate(jobs)
    free = of_job.with_for_update(key_share=True, skip_locked=True).subquery("free")
    every = of_job.subquery("every")
    number, free_number = (select(func.count()).select_from(one).scalar_subquery() for one in (every, free))
    return number == free_number


def erased_on_success(jobs: Any) -> dict[str, Any]:
    """Return the column values of a job that is erased when it succeeds. A unique key with a period stays."""
    return {**erased_job(), "unique_key": case((jobs.c.unique_period.is_(None), null()), else_=jobs.c.unique_key)}


class EraseRunning(Statement):
    """Erase a job that is about to succeed, and its earlier runs, in the transaction of the current run."""

    def __call__(self, session: Session | Connection, lease: Lease | Claimed) -> None:
        """Wait for the job's row, and erase the job if the lease is still valid."""
        values = {
            "lease_job_id": lease.job_id,
            "lease_run_id": lease.run_id,
            "lease_process_id": lease.process_id,
        }
        self._run(session, values)

    def sql(self) -> Any:
        jobs = self.tables.jobs
        lease = [
            bindparam(name, type_=kind)
            for name, kind in (("lease_job_id", BigInteger), ("lease_run_id", BigInteger), ("lease_process_id", Uuid))
        ]
        which = leased(jobs, *lease)
        erased = update(jobs).where(which).values(erased_on_success(jobs)).returning(jobs.c.id).cte("erased")
        return select(func.count()).select_from(erased).add_cte(*erased_with(vars(self.tables), erased))
