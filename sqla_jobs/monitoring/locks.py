"""Findings about sessions that hold locks on the rows of jobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import Finding, ask, session_named, table_names, warning
from sqla_jobs.monitoring.queues import waiting_queues
from sqla_jobs.rules.wording import duration

_LONG = 2.0
"""Seconds before a warning about a lock. A worker's own locks last for milliseconds."""
_SOME = 20
"""The maximum number of jobs that are examined: queued jobs in each queue, and overdue jobs in total."""
_CANDIDATES = 3
"""The maximum number of running jobs named as possible holders."""

# pg_locks shows no row locks: the row's xmax names the transaction, which holds a lock on its own id
_HELD = """
    WITH waiting AS (
      (SELECT id, state, xmax AS holder FROM {jobs}
       WHERE state = 'scheduled' AND run_at < clock_timestamp() ORDER BY run_at LIMIT :some)
      UNION ALL
      (SELECT head.* FROM unnest(CAST(:queues AS text[])) AS each (name) CROSS JOIN LATERAL (
         SELECT id, state, xmax AS holder FROM {jobs}
         WHERE state = 'queued' AND queue = each.name ORDER BY priority, position LIMIT :some
       ) AS head)
    )
    SELECT waiting.id, waiting.state, activity.pid, activity.usename, activity.application_name,
      host(activity.client_addr), activity.state, activity.xact_start,
      extract(epoch FROM clock_timestamp() - activity.xact_start)::float8
    FROM waiting
    JOIN pg_locks ON locktype = 'transactionid' AND granted AND transactionid = waiting.holder
    JOIN pg_stat_activity AS activity ON activity.pid = pg_locks.pid
    WHERE activity.pid <> pg_backend_pid()
      AND activity.xact_start < clock_timestamp() - make_interval(secs => :long)
    ORDER BY waiting.id
"""


_IDLE_HOLDERS = text(
    """
    SELECT holder.pid, holder.usename, host(holder.client_addr), holder.application_name,
      extract(epoch FROM now() - holder.state_change)::float8
    FROM pg_stat_activity AS holder
    WHERE holder.datname = current_database() AND holder.pid <> pg_backend_pid()
      AND holder.state LIKE 'idle in transaction%' AND holder.state_change < now() - interval '1 minute'
      AND EXISTS (
        SELECT FROM pg_locks
        WHERE pg_locks.pid = holder.pid AND relation = CAST(:table AS regclass)
          AND mode IN ('RowShareLock', 'RowExclusiveLock')
      )
    """
)


def locked_jobs(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find sessions that are idle in a transaction with locks on jobs."""
    (table,) = table_names(session, jobs, ["jobs"])
    for pid, user, address, program, age in ask(session, jobs, _IDLE_HOLDERS, table=table):
        yield warning(
            "locked jobs",
            f"{session_named(pid, user, address, program)} has done nothing for {age:.0f} s inside a transaction",
            f"jobs that it has locked wait; if its host is gone, end it: SELECT pg_terminate_backend({pid})",
        )


def held_jobs(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find waiting jobs that no worker can claim because a session has locked their rows.

    A row lock that several sessions share is not found.
    """
    (table,) = table_names(session, jobs, ["jobs"])
    values = {"queues": waiting_queues(session, jobs), "some": _SOME, "long": _LONG}
    for job_id, state, pid, user, name, address, doing, since, age in ask(
        session, jobs, text(_HELD.format(jobs=table)), **values
    ).all():
        holders = _possible_holders(session, jobs, since)
        named = " or ".join(f"job {holder} ({task[:200]})" for holder, task in holders)
        perhaps = f"; possibly the transaction of {named}" if named else ""
        end = f"end it: SELECT pg_terminate_backend({pid})"
        yield warning(
            f"job {job_id}",
            f"it is {state}, and {session_named(pid, user, address, name)} holds its row: {doing}, "
            f"in a transaction for {duration(age)}{perhaps}",
            f"if it is that job: sqla-jobs cancel {holders[0][0]}; else {end}" if holders else f"commit it, or {end}",
        )


_HOLDER = """
    SELECT activity.pid, activity.usename, host(activity.client_addr), activity.application_name,
      extract(epoch FROM clock_timestamp() - activity.xact_start)::float8
    FROM {jobs} AS job
    JOIN pg_locks ON locktype = 'transactionid' AND granted AND transactionid = job.xmax
    JOIN pg_stat_activity AS activity ON activity.pid = pg_locks.pid
    WHERE job.id = :job_id AND activity.pid <> pg_backend_pid()
    LIMIT 1
"""


def read_holder(session: Session, jobs: Jobs[Any], job_id: int) -> Any:
    """Return the session that holds the lock on a job's row: pid, user, address, program and seconds.

    Return None if no session holds it, or if several share it.
    """
    (table,) = table_names(session, jobs, ["jobs"])
    return ask(session, jobs, text(_HOLDER.format(jobs=table)), job_id=job_id).first()


def _possible_holders(session: Session, jobs: Jobs[Any], since: Any) -> list[tuple[int, str]]:
    """Return the running transactional jobs that were claimed before a transaction began, at `since`.

    PostgreSQL does not know which job a session is running, so each of these jobs is a candidate. If there are too many
    candidates, return none.
    """
    job = jobs.Job
    tasks = [name for name in jobs.tasks if jobs.tasks[name].declaration.signature.wants_session]
    running = (
        select(job.id, job.task)
        .where(job.state == "running", job.started_at <= since, job.task.in_(tasks))
        .order_by(func.abs(func.extract("epoch", job.started_at - since)))
        .limit(_CANDIDATES + 1)
    )
    found = [(row[0], row[1]) for row in ask(session, jobs, running)]
    return found if len(found) <= _CANDIDATES else []
