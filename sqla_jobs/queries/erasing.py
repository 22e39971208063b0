"""The erasure of personal data in jobs and their runs. The rows themselves remain."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.models.mapping import Models
from sqla_jobs.queries.expressions import array_of, quoted
from sqla_jobs.queries.statement import Statement
from sqla_jobs.queries.values import Claimed, Lease, of_lease
from sqla_jobs.rules.redaction import ERASED_ARGS

ERASED_COLUMNS: dict[str, tuple[str, ...]] = {
    "jobs": ("args", "unique_key", "progress_message", "headers"),
    "runs": ("result", "error", "traceback"),
    "steps": ("result",),
}
"""The columns that are erased, by table. Signals that no run has received are deleted."""
_ERASED_ARGS: sa.ColumnElement[Any] = sa.literal_column(f"'{json.dumps(ERASED_ARGS)}'", JSONB)


def check_may_erase(connection: sa.Connection, models: Models[Any]) -> None:
    """Raise `ConfigurationError` if this role may not erase jobs: no success that erases a job could be stored."""
    names = {noun: quoted(models.tables[noun]) for noun in (*ERASED_COLUMNS, "signals")}
    rights = [
        (sa.func.has_column_privilege(names[noun], column, "UPDATE"), f"change {column} of {names[noun]}")
        for noun, columns in ERASED_COLUMNS.items()
        for column in columns
    ]
    for right, what in (
        *rights,
        (sa.func.has_table_privilege(names["signals"], "DELETE"), f"delete {names['signals']}"),
    ):
        if not connection.scalar(sa.select(right)):
            raise ConfigurationError(
                f"a task declares retention={{'succeeded': 'erase'}}, and this role may not {what}: grant what "
                "`sqla-jobs grants --worker ROLE` says about that, or leave that retention out"
            )


def erased_job() -> dict[str, Any]:
    """Return the column values of an erased job."""
    return {**dict.fromkeys(ERASED_COLUMNS["jobs"], sa.null()), "args": _ERASED_ARGS}


def has_arguments(args: Any) -> sa.ColumnElement[bool]:
    """Return the condition that arguments have not been erased. Version 0.1 replaced erased arguments by a text."""
    return sa.and_(sa.func.jsonb_typeof(args) == "object", args != _ERASED_ARGS)


def erased_with(tables: Mapping[str, Any], jobs: Any) -> list[sa.CTE]:
    """Return CTEs that erase the runs, steps and signals of the jobs in the CTE `jobs`, which has a column `id`.

    `tables` holds the tables by name.
    """
    ids = array_of(sa.select(jobs.c.id))
    runs, steps, signals = tables["runs"], tables["steps"], tables["signals"]
    return [
        sa.update(runs)
        .where(runs.c.job_id == sa.any_(ids))
        .values({runs.c[name]: sa.null() for name in ERASED_COLUMNS["runs"]})
        .cte("of_runs"),
        sa.update(steps)
        .where(steps.c.job_id == sa.any_(ids))
        .values({steps.c[name]: sa.null() for name in ERASED_COLUMNS["steps"]})
        .cte("of_steps"),
        sa.delete(signals).where(signals.c.job_id == sa.any_(ids)).cte("of_signals"),
    ]


NO_RUN_IS_LOCKED = """(SELECT count(*) FROM $runs r WHERE r.job_id = j.id) = (SELECT count(*) FROM (
  SELECT r.id FROM $runs r WHERE r.job_id = j.id FOR NO KEY UPDATE SKIP LOCKED) free)"""
"""Locks the runs of the job `j`, and is true if no other session has locked one of them."""

ERASED_ON_SUCCESS = (
    f"args = '{json.dumps(ERASED_ARGS)}', progress_message = NULL, headers = NULL, "
    "unique_key = CASE WHEN j.unique_period IS NOT NULL THEN j.unique_key END"
)
"""The columns of a job that is erased when it succeeds. A unique key with a period stays."""

ERASED_WITH_JOBS = """of_runs AS (
    UPDATE $runs SET result = NULL, error = NULL, traceback = NULL WHERE job_id = ANY (ARRAY(SELECT id FROM done))
), of_steps AS (
    UPDATE $steps SET result = NULL WHERE job_id = ANY (ARRAY(SELECT id FROM done))
), of_signals AS (
    DELETE FROM $signals WHERE job_id = ANY (ARRAY(SELECT id FROM done))
)"""
"""CTEs that erase the runs, steps and signals of the jobs in the CTE `done`."""


class EraseRunning(Statement):
    """Erase a job that is about to succeed, and its earlier runs, in the transaction of the current run."""

    text: ClassVar[str] = f"""
        WITH done AS (
            UPDATE $jobs j SET {ERASED_ON_SUCCESS} WHERE $has_lease RETURNING j.id
        ), {ERASED_WITH_JOBS}
        SELECT count(*) FROM done"""

    def __call__(self, session: Session | sa.Connection, lease: Lease | Claimed) -> None:
        """Wait for the job's row, and erase the job if the lease is still valid."""
        self._run(session, of_lease(lease))
