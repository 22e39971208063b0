"""Which columns the INSERT of a new job names."""

from __future__ import annotations

from typing import Any

from sqlalchemy import FetchedValue, Table

from sqla_jobs.models.columns import JobMixin


def name_only_what_is_set(jobs: Table) -> None:
    """Let SQLAlchemy leave columns of the library to the server where a new job has no value for them.

    Of a nullable column without a default it would say NULL, and whoever enqueues would need the right to insert
    columns with which another job's tick or run can be taken, such as `schedule_id` and `current_run_id`.
    """
    for name in JobMixin.__annotations__.keys() & jobs.columns.keys():
        column: Any = jobs.columns[name]
        if column.nullable and column.server_default is None:
            column.server_default = FetchedValue()
