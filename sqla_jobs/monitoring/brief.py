"""Reading that cannot load the server for long."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import ask


@contextmanager
def brief(jobs: Jobs[Any], seconds: float) -> Generator[Session]:
    """A transaction on the database of the jobs. The server ends a statement that takes longer than `seconds`."""
    with jobs.binding().transaction() as session:
        ask(session, jobs, select(func.set_config("statement_timeout", f"{1000 * seconds:.0f}", True)))
        yield session
