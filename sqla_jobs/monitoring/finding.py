"""Findings about a database, and helpers for reading it."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Executable, func, select
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs


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


def well(about: str, found: str) -> Finding:
    """Return a finding with the verdict ok."""
    return Finding(about, Verdict.ok, found)


def warning(about: str, found: str, remedy: str) -> Finding:
    """Return a warning: something is slow or stuck, or will be."""
    return Finding(about, Verdict.warning, found, remedy)


def ask(session: Session, jobs: Jobs[Any], question: Executable, **values: Any) -> Any:
    """Execute a statement on the jobs' database, even if the session uses several databases."""
    return session.execute(question, values, bind_arguments={"mapper": jobs.Job})


@contextmanager
def brief(jobs: Jobs[Any], seconds: float) -> Generator[Session]:
    """Open a transaction on the jobs' database in which the server cancels statements that take over `seconds`."""
    with jobs.binding().session() as session:
        ask(session, jobs, select(func.set_config("statement_timeout", f"{1000 * seconds:.0f}", True)))
        yield session


def table_names(session: Session, jobs: Jobs[Any], nouns: Iterable[str]) -> list[str]:
    """Return the quoted SQL names of the tables that `nouns` names, such as `jobs` and `runs`."""
    preparer = session.connection(bind_arguments={"mapper": jobs.Job}).dialect.identifier_preparer
    return [str(preparer.format_table(jobs.models.tables[noun])) for noun in nouns]


def session_named(pid: int, user: str, address: str | None, program: str | None) -> str:
    """Describe a server session in words."""
    return f"pid {pid} of {user} from {address or 'this host'} ({program or 'no application_name'})"
