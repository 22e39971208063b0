"""Checks of locks: who holds the rows of waiting jobs, and whom the sessions of running jobs wait for."""

from __future__ import annotations

from sqla_jobs.monitoring.check import Check

_BLOCKED = """
    WITH RECURSIVE stuck AS MATERIALIZED (
      SELECT pid, xact_start, extract(epoch FROM clock_timestamp() - query_start)::float8 AS seconds,
        pg_blocking_pids(pid) AS blockers
      FROM pg_stat_activity
      WHERE datname = current_database() AND pid <> pg_backend_pid() AND wait_event_type = 'Lock'
        AND xact_start IS NOT NULL
    ), chain AS (
      SELECT pid, unnest(blockers) AS ahead FROM stuck
      UNION SELECT chain.pid, unnest(stuck.blockers) FROM chain JOIN stuck ON stuck.pid = chain.ahead
    ), blocked AS (
      SELECT DISTINCT ON (stuck.pid) stuck.*, chain.ahead AS holder FROM stuck JOIN chain USING (pid)
      WHERE chain.ahead NOT IN (SELECT pid FROM stuck) AND seconds > :blocked ORDER BY stuck.pid, chain.ahead
    )"""
"""The sessions that have waited for a lock for long, each with the session at the end of the chain of its blockers.

Sessions that this role may not see are left out.
"""
_HOLDER = """holder.pid AS holder, $who(holder) AS who, coalesce(holder.state, 'unknown') AS doing,
      $age(holder.xact_start) AS age"""
_END = "commit or roll back its transaction, or end it: SELECT pg_terminate_backend({holder})"

NEAREST = f"""{_BLOCKED}
    SELECT blocked.pid, blocked.seconds, {_HOLDER}
    FROM blocked JOIN pg_stat_activity AS holder ON holder.pid = blocked.holder
    WHERE blocked.xact_start >= CAST(:since AS timestamptz) ORDER BY blocked.xact_start LIMIT 1"""
"""The blocked session whose transaction was the first to begin after a job's claim: most likely the job's own."""
NEAREST_SAYS = (
    "pid {pid}, possibly the session of {whose}, has waited {seconds:duration} for a lock. It is held by {who}, {doing}"
    "{age:duration|, in a transaction for }: " + _END + "."
)

LOCKS = (
    # pg_locks shows no row locks: the row's xmax names the transaction, which holds a lock on its own id. A lock that
    # several sessions share is not found. PostgreSQL does not know which job a session is running, so each running
    # transactional job that was claimed before the transaction began may be its own
    Check(
        name="row holders",
        about="job {id}",
        rows="""
            SELECT waiting.id, waiting.state, holder.pid, $who(holder) AS who,
              coalesce(holder.state, 'unknown') AS doing, $age(holder.xact_start) AS age, own.named,
              CASE WHEN own.first IS NULL THEN 'commit it, or '
                ELSE format('if it is that job: sqla-jobs cancel %s; else ', own.first) END AS first
            FROM $waiting AS waiting
            JOIN pg_locks ON locktype = 'transactionid' AND granted AND transactionid = waiting.xmax
            JOIN pg_stat_activity AS holder ON holder.pid = pg_locks.pid
            LEFT JOIN LATERAL (
              SELECT string_agg(format('job %s (%s)', id, left(task, 200)), ' or ' ORDER BY distance) AS named,
                (array_agg(id ORDER BY distance))[1] AS first
              FROM (
                SELECT id, task, abs(extract(epoch FROM started_at - holder.xact_start)) AS distance FROM $jobs
                WHERE state = 'running' AND started_at <= holder.xact_start
                  AND task = ANY(CAST(:transactional AS text[]))
                ORDER BY distance LIMIT 4) AS candidate
              HAVING count(*) <= 3) AS own ON true
            WHERE holder.pid <> pg_backend_pid()
              AND ($age(holder.xact_start) > :locked OR CAST(:job_id AS bigint) IS NOT NULL)
            ORDER BY waiting.id""",
        says="it is {state}, and {who} holds its row: {doing}, in a transaction for {age:duration}"
        "{named:|; possibly the transaction of }",
        remedy="{first}end it: SELECT pg_terminate_backend({pid})",
        is_of_job=True,
        is_cheap=False,
    ),
    Check(
        name="lock waits",
        about="running jobs",
        rows=f"""{_BLOCKED}
            SELECT number, longest, {_HOLDER}, own.named
            FROM (
              SELECT holder AS pid, count(*) AS number, max(seconds) AS longest, max(xact_start) AS since
              FROM blocked GROUP BY holder) AS each
            JOIN pg_stat_activity AS holder USING (pid)
            CROSS JOIN LATERAL (
              SELECT string_agg(format('job %s (%s)', id, left(task, 200)), ', ' ORDER BY started_at)
                  FILTER (WHERE place <= 3) || CASE WHEN count(*) > 3 THEN ' and more' ELSE '' END AS named
              FROM (
                SELECT id, task, started_at, row_number() OVER (ORDER BY started_at) AS place FROM $jobs
                WHERE state = 'running' AND started_at <= each.since ORDER BY started_at LIMIT 4) AS candidate) AS own
            WHERE own.named IS NOT NULL""",
        says="{number:they_are session} waiting for a lock, for {longest:duration} so far; possibly of {named}. The "
        "lock is held by {who}, {doing}{age:duration|, in a transaction for }",
        remedy=_END,
    ),
)
