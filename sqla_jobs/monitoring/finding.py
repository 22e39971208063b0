"""Findings about a database, and helpers for reading it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.database.binding import Binding
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import RunAtType


class Verdict(StrEnum):
    """The severity of a finding."""

    ok = "ok"
    warning = "warning"
    error = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check and, unless the verdict is ok, the remedy."""

    about: str
    verdict: Verdict
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.about}: {self.found}"


def ask(session: Session, jobs: Jobs[Any], question: sa.Executable, **values: Any) -> Any:
    """Execute a statement on the jobs' database, even if the session uses several databases."""
    return session.execute(question, values, bind_arguments={"mapper": jobs.Job})


def readable(column: Any) -> Any:
    """Return a column as a driver can read it, since plain SQL may store an infinite time in a job."""
    is_moment = isinstance(column.type, sa.DateTime) and column.type.timezone
    return (sa.type_coerce(column, RunAtType()) if is_moment else column).label(column.key)


@contextmanager
def brief(binding: Binding, jobs: Jobs[Any], seconds: float) -> Generator[Session]:
    """Open a transaction on a database of jobs in which the server cancels statements that take over `seconds`."""
    with binding.session() as session:
        ask(session, jobs, sa.select(sa.func.set_config("statement_timeout", f"{1000 * seconds:.0f}", True)))
        yield session
