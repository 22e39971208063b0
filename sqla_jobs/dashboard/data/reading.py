"""Sessions for pages: short, read-only and with a timeout."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.queries.expressions import LAG

PATIENCE = 5.0
"""The timeout of each statement of a page, in seconds."""
_SETTINGS = {
    "transaction_read_only": "on",
    "statement_timeout": f"{PATIENCE:.0f}s",
    "jit": "off",  # compiling would take longer than a page may take
    "plan_cache_mode": "force_custom_plan",  # a generic plan could not use the partial indexes of one state
}


@contextmanager
def reading(jobs: Jobs[Any]) -> Generator[tuple[Session, datetime, float | None]]:
    """Yield a read-only session, the server's time, and how many seconds a standby is behind; None for a primary.

    Raises `ConfigurationError` without a bind.
    """
    with jobs._replica().session() as session:
        said = [sa.func.set_config(name, value, True) for name, value in _SETTINGS.items()]
        on_jobs = {"mapper": jobs.Job}
        row: Any = session.execute(
            sa.select(sa.func.clock_timestamp(), sa.literal_column(LAG), *said), bind_arguments=on_jobs
        ).one()
        try:
            yield session, row[0], row[1]
        finally:
            session.rollback()
