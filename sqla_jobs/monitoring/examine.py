"""The list of all checks, and the findings of `doctor`, `status` and the dashboard."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.check import Check, Look
from sqla_jobs.monitoring.finding import Finding, Verdict
from sqla_jobs.monitoring.limits import LIMITS, SPELLINGS
from sqla_jobs.monitoring.locks import LOCKS
from sqla_jobs.monitoring.prerequisites import PREREQUISITES
from sqla_jobs.monitoring.server_checks import DEPLOYED, SERVER
from sqla_jobs.monitoring.waiting_jobs import WAITING_JOBS
from sqla_jobs.monitoring.work import WORK

CHECKS: tuple[Check, ...] = (*SERVER, *WORK, *LOCKS, *WAITING_JOBS, *PREREQUISITES, *LIMITS)
"""What a person acts on at night."""


def examine(session: Session, jobs: Jobs[Any], checks: Iterable[Check] = CHECKS) -> list[Finding]:
    """Return all findings of `sqla-jobs doctor`. Writes nothing and needs only the application's own privileges."""
    look = Look(session, jobs)
    found: dict[str, list[Finding]] = {}
    for check in checks:
        found.setdefault(check.name, []).extend(check.find(look))
    return [one for name, some in found.items() for one in some or [Finding(name, Verdict.ok, "nothing found")]]


def examine_deploy(session: Session, jobs: Jobs[Any]) -> list[Finding]:
    """Return the warnings of `sqla-jobs migrate --check`: settings, triggers and keys, which a deploy changes."""
    found = examine(session, jobs, (*DEPLOYED, *SPELLINGS))
    return [one for one in found if one.verdict is not Verdict.ok]


def problems(session: Session, jobs: Jobs[Any]) -> list[Finding]:
    """Return the problems that are cheap enough to be looked for every few seconds. Imports the tasks."""
    jobs.tasks.load()
    look = Look(session, jobs)
    found = (finding for check in CHECKS if check.is_cheap for finding in check.find(look))
    return [finding for finding in found if finding.verdict is not Verdict.ok]
