"""What was found about a database, and what to do about it."""

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
    """How bad it is."""

    ok = "ok"
    warning = "warning"
    error = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what was found and, unless it is well, the remedy."""

    about: str
    verdict: Verdict
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.about}: {self.found}"


def well(about: str, found: str) -> Finding:
    """Nothing is wrong with it."""
    return Finding(about, Verdict.ok, found)


def warning(about: str, found: str, remedy: str) -> Finding:
    """Something is slow or stuck, or will be."""
    return Finding(about, Verdict.warning, found, remedy)


def ask(session: Session, jobs: Jobs[Any], question: Executable, **values: Any) -> Any:
    """The answer of the database of the jobs, where the session knows several."""
    return session.execute(question, values, bind_arguments={"mapper": jobs.Job})


@contextmanager
def brief(jobs: Jobs[Any], seconds: float) -> Generator[Session]:
    """A transaction on the database of the jobs. The server ends a statement that takes longer than `seconds`."""
    with jobs.binding().transaction() as session:
        ask(session, jobs, select(func.set_config("statement_timeout", f"{1000 * seconds:.0f}", True)))
        yield session


def table_names(session: Session, jobs: Jobs[Any], nouns: Iterable[str]) -> list[str]:
    """What SQL calls the tables of jobs, runs and so on."""
    preparer = session.connection(bind_arguments={"mapper": jobs.Job}).dialect.identifier_preparer
    return [str(preparer.format_table(jobs.models.tables[noun])) for noun in nouns]


def session_named(pid: int, user: str, address: str | None, program: str | None) -> str:
    """Who has a session of the server, for people."""
    return f"pid {pid} of {user} from {address or 'this host'} ({program or 'no application_name'})"
