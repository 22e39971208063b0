"""The kit refuses whatever keeps a worker from starting. Otherwise tests would pass that no worker could run."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import ConfigurationError, Jobs, RateLimit
from sqla_jobs.testing import drain


def application() -> Jobs[Any]:
    """An application with the tables of the other tests, and no task."""
    return Jobs(type("Base", (DeclarativeBase,), {}))


def check_refused(jobs: Jobs[Any], session: Session, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        drain(session, jobs)


def test_two_tasks_that_declare_one_limit_differently(sqla_jobs_session: Session) -> None:
    jobs = application()

    @jobs.task(name="one", limits=RateLimit(5, per=60, name="smtp"))
    def one() -> None: ...

    @jobs.task(name="two", limits=RateLimit(6, per=60, name="smtp"))
    def two() -> None: ...

    one.enqueue(sqla_jobs_session)
    check_refused(jobs, sqla_jobs_session, "smtp")
