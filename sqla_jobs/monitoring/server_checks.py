"""Checks of the server and of what an application adds to the jobs' tables."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from sqla_jobs.database.connection_limits import LIMIT
from sqla_jobs.models.citus import FORCED_BY, TWO_PHASES
from sqla_jobs.monitoring.check import SECONDS, Check, Look, Rows
from sqla_jobs.queries.delete_jobs import Reference, Removal
from sqla_jobs.queries.expressions import LAG
from sqla_jobs.rules.retention import seconds_kept
from sqla_jobs.rules.wording import Count

_MANY = 1_000
"""A foreign key is a problem if it keeps this many jobs past their retention. Some are kept on purpose."""
_COUNTED = 100_000
"""The maximum number of jobs counted in each state."""

_OLDEST = """
    SELECT a.pid, $who(a) AS who, a.state, $age(a.xact_start) AS age,
      left(btrim(regexp_replace(a.query, '\\s+', ' ', 'g')), 100) AS query
    FROM pg_stat_activity AS a
    WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.backend_type = 'client backend'
      AND (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL)
    ORDER BY a.xact_start LIMIT 1"""
"""The oldest transaction in this database, without the check's own and those that this user may not see."""


def _pooler(look: Look) -> Rows:
    """Measure how long a statement waits for a pooler. This must run first."""
    began = time.monotonic()
    there = look.ask(sa.select(sa.func.pg_backend_pid())).scalar_one()
    waited = time.monotonic() - began
    connection: Any = look.session.connection(bind_arguments={"mapper": look.jobs.Job}).connection.driver_connection
    if getattr(getattr(connection, "info", None), "backend_pid", there) != there:
        yield {"waited": waited}


def _clock(look: Look) -> Rows:
    before = datetime.now(UTC)
    there = look.ask(sa.select(sa.func.clock_timestamp())).scalar_one()
    yield {"off": max((before - there).total_seconds(), (there - datetime.now(UTC)).total_seconds(), 0.0)}


def _kept_jobs(look: Look) -> Rows:
    """Count the jobs that foreign keys keep from being pruned. Assumes the default retention."""
    removal = Removal(look.jobs._models)
    numbers = Counter[Reference]()
    for state, seconds in seconds_kept({"audit": None, "ticks": None}).items():
        numbers.update(dict(removal.kept(look.session, removal.ended(state, seconds), most=_COUNTED)))
    for key, number in numbers.items():
        if number >= _MANY:
            yield {"key": key, "number": Count(number, is_least=number >= _COUNTED)}


SERVER = (
    Check(
        name="pooler",
        rows=_pooler,
        when=lambda row: row["waited"] > SECONDS["pooled"],
        says="in front of the server; this command waited {waited:duration} for a connection",
        remedy="all connections of its pool are in use: make the pool larger (PgBouncer: default_pool_size), or find "
        "the long transactions that occupy it: `sqla-jobs doctor --database-url URL`, with the server's own address",
        is_cheap=False,
    ),
    Check(
        name="standby",
        rows=f"SELECT {LAG} AS behind WHERE pg_is_in_recovery()",
        when=lambda row: row["behind"] is None or row["behind"] > SECONDS["standby"],
        says="a standby that is {behind:duration} behind its primary",
        remedy="its pages and figures are as old; on the primary, pg_stat_replication tells what it waits for",
    ),
    Check(
        name="connections",
        rows=f"""
            SELECT used, most, fleet FROM ({LIMIT}) AS now (used, most), (
              SELECT coalesce(sum(process.connections), 0) AS fleet
              FROM $processes AS process WHERE $alive(process)) AS live""",
        when=lambda row: row["used"] > 0.8 * row["most"] or row["fleet"] > row["most"],
        says="{used} of {most} are in use, and live workers and clocks may use up to {fleet}",
        remedy="raise max_connections, lower --processes or the concurrency of workers, or put PgBouncer in front of "
        "the server",
        is_cheap=False,
    ),
    Check(
        name="clocks",
        about="clock of this host",
        rows=_clock,
        when=lambda row: row["off"] > SECONDS["clock_off"],
        says="{off:.1f} s off the server's",
        remedy="the server's clock decides when jobs are due, so a run_at computed here is off: set this clock by NTP",
        is_cheap=False,
    ),
    Check(
        name="oldest transaction",
        rows=_OLDEST,
        when=lambda row: row["age"] > SECONDS["old_transaction"],
        says="{age:duration}, {state}, {who}: {query}",
        remedy="vacuum keeps all rows that died since it began, so every queue gets slower; end it: "
        "SELECT pg_terminate_backend({pid})",
    ),
    Check(
        name="oldest transaction",
        about="prepared transaction",
        rows="SELECT gid, $age(prepared) AS age FROM pg_prepared_xacts WHERE database = current_database()",
        says="{gid!r}, {age:duration} old",
        remedy="it keeps its locks until it is ended: ROLLBACK PREPARED '{gid}'",
        is_cheap=False,
    ),
    Check(
        name="oldest transaction",
        about="table {name}",
        rows=f"""
            SELECT relid::regclass::text AS name, n_live_tup AS live, n_dead_tup AS dead,
              coalesce(last_autovacuum::text, 'never') AS vacuumed, pg_total_relation_size(relid) / 1048576.0 AS size,
              oldest.age, oldest.pid
            FROM pg_stat_user_tables LEFT JOIN ({_OLDEST}) AS oldest ON oldest.age > 2
            WHERE relid IN ('$jobs'::regclass, '$runs'::regclass, '$processes'::regclass)""",
        when=lambda row: row["dead"] > 10_000 and row["dead"] > row["live"],
        says="{size:.0f} MB, {live:,} rows, {dead:,} dead, vacuumed {vacuumed}",
        remedy="{age:duration|the oldest transaction began | ago, and vacuum keeps all rows that died since: if nobody "
        "needs it, }{pid:|SELECT pg_terminate_backend(|, 5000); then }VACUUM {name}",
        is_cheap=False,
    ),
    Check(
        name="jobs kept by foreign keys",
        about="foreign keys to jobs",
        rows=_kept_jobs,
        says="rows of {key} keep {number:plural job} from being pruned",
        remedy="{key.remedy}",
        is_cheap=False,
    ),
)

DEPLOYED = (
    Check(
        name="Citus",
        rows=f"""
            SELECT FROM pg_trigger WHERE tgname LIKE '%{TWO_PHASES}' AND tgenabled <> 'D'
              AND tgrelid = ANY(CAST(:tables AS regclass[]))
            HAVING to_regclass('pg_dist_partition') IS NOT NULL AND count(*) < {len(FORCED_BY)}""",
        says="a transaction that writes to jobs and to a distributed table does not commit in two phases",
        remedy="a crash between its two commits loses or doubles a job's effects: `sqla-jobs migrate --citus`",
    ),
    Check(
        name="settings",
        about="{name}",
        rows="""
            SELECT name, current_setting(name) AS value, remedy
            FROM (VALUES
              ('autovacuum', 'on', 'switch it on: tables of jobs grow without end'),
              ('fsync', 'on', 'switch it on: a crash of the host can lose or double jobs'),
              ('full_page_writes', 'on', 'switch it on: a crash of the host can damage tables'),
              ('track_activities', 'on', 'switch it on, to see who holds a transaction open'),
              ('default_transaction_read_only', 'off', 'workers have to write')
            ) AS wanted (name, wanted, remedy)
            WHERE current_setting(name) <> wanted AND current_setting('cluster_name') <> 'local_postgres'""",
        says="{value}",
        remedy="{remedy}",
    ),
    Check(
        name="foreign keys to jobs",
        rows="""
            SELECT reference.conrelid::regclass::text AS name, attribute.attname AS column
            FROM pg_constraint AS reference
            JOIN pg_attribute AS attribute
              ON attribute.attrelid = reference.conrelid AND attribute.attnum = reference.conkey[1]
            WHERE reference.confrelid = '$jobs'::regclass AND reference.contype = 'f'
              AND NOT EXISTS (
                SELECT FROM pg_index
                WHERE indrelid = reference.conrelid AND indkey[0] = ANY(reference.conkey) AND indisvalid)
            ORDER BY 1, 2""",
        says="{name}.{column} has no index",
        remedy="pruning reads the whole table for each job: CREATE INDEX CONCURRENTLY ON {name} ({column})",
    ),
    Check(
        name="row level security",
        rows="""
            SELECT oid::regclass::text AS name,
              CASE WHEN row_security_active(oid) THEN 'it applies to this role' ELSE 'this role is exempt' END AS role
            FROM pg_class WHERE oid = ANY(CAST(:tables AS regclass[])) AND relrowsecurity ORDER BY 1""",
        says="enabled on {name}; {role}",
        remedy="workers never claim, rescue or prune jobs that a policy hides from their role, and log no error. Give "
        "workers and clocks a role with BYPASSRLS, or ALTER TABLE {name} DISABLE ROW LEVEL SECURITY",
    ),
    Check(
        name="triggers",
        rows="""
            SELECT tgrelid::regclass::text AS name, quote_ident(tgname) AS trigger, tgfoid::regproc::text AS function
            FROM pg_trigger
            WHERE tgrelid = ANY(CAST(:tables AS regclass[])) AND NOT tgisinternal AND tgenabled <> 'D'
              AND tgtype & 66 <> 0 -- BEFORE or INSTEAD OF
            ORDER BY 1, 2""",
        says="trigger {trigger} of {name} calls {function} before rows are written",
        remedy="if it raises or returns NULL, a job is not claimed, stored or pruned. Let it return NEW (OLD for a "
        "DELETE) for each write of a worker; or DROP TRIGGER {trigger} ON {name}",
    ),
)
"""What a deploy changes, and not the night: `sqla-jobs migrate --check` looks at it."""
