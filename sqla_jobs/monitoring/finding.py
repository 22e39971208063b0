"""What was found about a database, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Executable
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
