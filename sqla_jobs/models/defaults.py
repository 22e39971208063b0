"""The columns that a new job's INSERT names."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from sqla_jobs.models.columns import JobMixin


def name_only_what_is_set(jobs: sa.Table) -> None:
    """Leave the library's columns that have no value out of a new job's INSERT.

    Otherwise SQLAlchemy would set nullable columns without a default to NULL. Every role that enqueues would then need
    the privilege to set columns such as `schedule_id` and `current_run_id`, and could take another job's tick or run.
    """
    for name in JobMixin.__annotations__.keys() & jobs.columns.keys():
        column: Any = jobs.columns[name]
        if column.nullable and column.server_default is None:
            column.server_default = sa.FetchedValue()
