"""Sessions that wait for a lock while jobs are running, and the session that holds the lock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import Finding, ask, session_named, warning
from sqla_jobs.rules.wording import duration, plural

_LONG = 2.0
"""Seconds for which a session may wait before a warning."""
_CANDIDATES = 3
"""The maximum number of running jobs named as possible owners of a waiting session."""

_WAITING = text(
    """
    SELECT pid, xact_start, extract(epoch FROM clock_timestamp() - query_start)::float8, pg_blocking_pids(pid)
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND wait_event_type = 'Lock'
      AND xact_start IS NOT NULL
    ORDER BY xact_start, pid
    """
)
_SESSIONS = text(
    """
    SELECT pid, usename, host(client_addr), application_name, state,
      extract(epoch FROM clock_timestamp() - xact_start)::float8
    FROM pg_stat_activity WHERE pid = ANY(:pids)
    """
)


@dataclass(frozen=True, slots=True)
class Holder:
    """The session that blocks others and is not waiting itself."""

    pid: int
    said: str
    """The session's user and program, its state, and the age of its transaction."""

    @property
    def remedy(self) -> str:
        """The ways to end this session's transaction."""
        return f"commit or roll back its transaction, or end it: SELECT pg_terminate_backend({self.pid})"


@dataclass(frozen=True, slots=True)
class Blocked:
    """A session that waits for a lock: the start of its transaction, its wait in seconds, and the lock's holder."""

    pid: int
    since: datetime
    seconds: float
    holder: Holder


def read_blocked(session: Session, jobs: Jobs[Any]) -> list[Blocked]:
    """Return sessions that have been waiting for a few seconds, the oldest transaction first.

    Sessions that this role may not see are left out.
    """
    rows: list[Any] = ask(session, jobs, _WAITING).all()
    blockers: dict[int, list[int]] = {row[0]: row[3] for row in rows}
    heads = {pid: _head(pid, blockers) for pid in blockers}
    holders = _holders(session, jobs, {*heads.values()} - {0})
    return [
        Blocked(pid, since, seconds, holders[heads[pid]])
        for pid, since, seconds, _ in rows
        if seconds > _LONG and heads[pid] in holders
    ]


def _head(pid: int, blockers: Mapping[int, Sequence[int]]) -> int:
    """Return the first session in the chain of blockers that is not blocked itself; 0 if there is none."""
    seen, ahead = {pid}, [*blockers[pid]]
    while ahead:
        one = ahead.pop(0)
        if one not in blockers:
            return one
        ahead += [other for other in blockers[one] if other not in seen]
        seen.update(blockers[one])
    return 0


def _holders(session: Session, jobs: Jobs[Any], pids: set[int]) -> dict[int, Holder]:
    if not pids:
        return {}
    found = dict[int, Holder]()
    for pid, user, address, program, doing, age in ask(session, jobs, _SESSIONS, pids=sorted(pids)):
        open_for = "" if age is None else f", in a transaction for {duration(age)}"
        found[pid] = Holder(pid, f"{session_named(pid, user, address, program)}, {doing or 'unknown'}{open_for}")
    return found


def blocked_jobs(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find sessions that block other sessions, if the blocked ones may belong to running jobs."""
    by_holder = dict[Holder, list[Blocked]]()
    for one in read_blocked(session, jobs):
        by_holder.setdefault(one.holder, []).append(one)
    for holder, waiting in by_holder.items():
        named = _running_since(session, jobs, waiting[-1].since)
        if not named:
            continue
        yield warning(
            "running jobs",
            f"{plural(len(waiting), 'session')} {'waits' if len(waiting) == 1 else 'wait'} for a lock, for "
            f"{duration(max(one.seconds for one in waiting))} so far; possibly those of {named}. The lock is held by "
            f"{holder.said}",
            holder.remedy,
        )


def _running_since(session: Session, jobs: Jobs[Any], moment: datetime) -> str:
    """Name the running jobs that had started by `moment`, the oldest first: `job 4 (mail.send), job 5 (…) and more`.

    PostgreSQL does not know which job a session is running, so each of these jobs is a candidate.
    """
    job = jobs.Job
    running = select(job.id, job.task).where(job.state == "running", job.started_at <= moment)
    found = ask(session, jobs, running.order_by(job.started_at).limit(_CANDIDATES + 1)).all()
    named = [f"job {job_id} ({task[:200]})" for job_id, task in found[:_CANDIDATES]]
    return ", ".join(named) + (" and more" if len(found) > _CANDIDATES else "")


def nearest(blocked: Sequence[Blocked], started_at: datetime | None) -> Blocked | None:
    """Return the session whose transaction was the first to begin after a job's claim: most likely the job's own."""
    since = [one for one in blocked if started_at is not None and one.since >= started_at]
    return min(since, key=lambda one: one.since, default=None)
