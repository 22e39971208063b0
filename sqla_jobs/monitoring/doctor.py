"""Looks at a database for what makes queues slow or stuck, and says what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.additions import foreign_keys, row_level_security, triggers
from sqla_jobs.monitoring.finding import Finding, Verdict
from sqla_jobs.queries.expressions import Tables

_OLDEST_SERVER = 140000
_OLD_TRANSACTION = 300.0
_CLOCK_OFF = 2.0
_BLOATED = 0.5


def examine(session: Session, jobs: Jobs[Any]) -> list[Finding]:
    """What `sqla-jobs doctor` looks at in the database. Reads only; needs no rights beyond the application's own."""
    return [finding for look in _LOOKS for finding in look(session, jobs)]


def _server(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    number, name = session.execute(
        select(func.current_setting("server_version_num"), func.current_setting("server_version"))
    ).one()
    is_old = int(number) < _OLDEST_SERVER
    yield Finding(
        "server version",
        Verdict.error if is_old else Verdict.ok,
        f"PostgreSQL {name}",
        "PostgreSQL 14 or newer is needed" if is_old else "",
    )


_CONNECTIONS = text(
    """
    SELECT count(*), current_setting('max_connections')::int
    FROM pg_stat_activity WHERE backend_type = 'client backend'
    """
)
_SETTINGS: dict[str, tuple[Callable[[str], bool], str]] = {
    "autovacuum": (lambda value: value == "on", "switch it on: tables of jobs grow without end"),
    "fsync": (lambda value: value == "on", "switch it on: a crash of the host can lose or double jobs"),
    "full_page_writes": (lambda value: value == "on", "switch it on: a crash of the host can damage tables"),
    "track_activities": (lambda value: value == "on", "switch it on, to see who holds a transaction open"),
    "default_transaction_read_only": (lambda value: value == "off", "workers have to write"),
}


def _settings(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    for name, (is_good, remedy) in _SETTINGS.items():
        value = str(session.scalar(select(func.current_setting(name))))
        yield Finding(name, Verdict.ok if is_good(value) else Verdict.warning, value, "" if is_good(value) else remedy)
    used, most = session.execute(_CONNECTIONS).one()
    is_full = used > 0.8 * most
    yield Finding(
        "connections",
        Verdict.warning if is_full else Verdict.ok,
        f"{used} of {most}",
        "raise max_connections, or put a pooler before the server" if is_full else "",
    )


def _clock(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    before = datetime.now(UTC)
    there = session.scalars(select(func.clock_timestamp())).one()
    off = max((before - there).total_seconds(), (there - datetime.now(UTC)).total_seconds(), 0.0)
    is_off = off > _CLOCK_OFF
    yield Finding(
        "clock of this host",
        Verdict.warning if is_off else Verdict.ok,
        f"{off:.1f} s off the server's",
        "jobs go by the server's clock; let NTP set this one, or run_at computed here is off" if is_off else "",
    )


_OLDEST = text(
    """
    SELECT pid, usename, application_name, client_addr::text, state,
      extract(epoch FROM now() - xact_start)::float8, query
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
      AND backend_type <> 'autovacuum worker'
    ORDER BY xact_start LIMIT 1
    """
)


def _oldest_transaction(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    row = session.execute(_OLDEST).one_or_none()
    if row is None:
        yield Finding("oldest transaction", Verdict.ok, "none but this")
        return
    pid, user, program, address, state, age, query = row
    is_old = age > _OLD_TRANSACTION
    what = " ".join((query or "").split())[:100]
    yield Finding(
        "oldest transaction",
        Verdict.warning if is_old else Verdict.ok,
        f"{age:.0f} s, {state}, pid {pid} of {user} from {address or 'this host'} ({program or 'no name'}): {what}",
        f"it keeps vacuum from cleaning up behind the queue; end it: SELECT pg_terminate_backend({pid})"
        if is_old
        else "",
    )


_PREPARED = text(
    """
    SELECT gid, extract(epoch FROM now() - prepared)::float8
    FROM pg_prepared_xacts WHERE database = current_database()
    """
)


def _prepared(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    for name, age in session.execute(_PREPARED):
        yield Finding(
            "prepared transaction",
            Verdict.warning,
            f"{name!r}, {age:.0f} s old",
            f"it holds its locks until somebody ends it: ROLLBACK PREPARED '{name}'",
        )


def _bloat(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    tables = Tables(jobs.models)
    preparer = session.connection().dialect.identifier_preparer
    for table in (tables.jobs, tables.runs, tables.processes):
        name = preparer.format_table(table)
        statement = text(
            "SELECT n_live_tup, n_dead_tup, last_autovacuum, pg_total_relation_size(relid) FROM pg_stat_user_tables "
            "WHERE relid = CAST(:name AS regclass)"
        )
        row = session.execute(statement, {"name": name}).one_or_none()
        if row is None:
            continue
        live, dead, vacuumed, size = row
        is_bloated = dead > 10_000 and dead > _BLOATED * (live + dead)
        yield Finding(
            f"table {name}",
            Verdict.warning if is_bloated else Verdict.ok,
            f"{size / 2**20:.0f} MB, {live:,} rows, {dead:,} dead, vacuumed {vacuumed or 'never'}",
            f"look for an old transaction above, then VACUUM {name}" if is_bloated else "",
        )


def _vanished(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    job, process = jobs.Job, jobs.Process
    alive = select(process.id).where(
        process.heartbeat_at > func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, process.lease)
    )
    held = session.scalar(select(func.count()).where(job.state == "running", job.process_id.not_in(alive))) or 0
    yield Finding(
        "jobs of vanished processes",
        Verdict.warning if held else Verdict.ok,
        f"{held:,}",
        "a worker takes them back by itself within its lease; start one if none runs" if held else "",
    )
    holders = session.execute(_IDLE_HOLDERS, {"jobs": _jobs_table(session, jobs)}).all()
    for pid, user, address, age in holders:
        yield Finding(
            "locked jobs",
            Verdict.warning,
            f"pid {pid} of {user} from {address or 'this host'} has done nothing for {age:.0f} s inside a transaction",
            f"jobs it has locked wait; if its host is gone, end it: SELECT pg_terminate_backend({pid})",
        )


_IDLE_HOLDERS = text(
    """
    SELECT holder.pid, holder.usename, holder.client_addr::text,
      extract(epoch FROM now() - holder.state_change)::float8
    FROM pg_stat_activity AS holder
    WHERE holder.datname = current_database() AND holder.pid <> pg_backend_pid()
      AND holder.state LIKE 'idle in transaction%' AND holder.state_change < now() - interval '1 minute'
      AND EXISTS (
        SELECT FROM pg_locks
        WHERE pg_locks.pid = holder.pid AND relation = CAST(:jobs AS regclass)
          AND mode IN ('RowShareLock', 'RowExclusiveLock')
      )
    """
)


def _jobs_table(session: Session, jobs: Jobs[Any]) -> str:
    return session.connection().dialect.identifier_preparer.format_table(Tables(jobs.models).jobs)


def _set_aside(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    of_each = session.scalars(select(jobs.Process.set_aside))
    reasons = {name: why for shown in of_each for name, why in shown.items()}
    for name in sorted(reasons):
        yield Finding(
            name[:100],
            Verdict.warning,
            str(reasons[name])[:1000],
            "mend the row, or the trigger or constraint of yours that refuses; it is tried again every minute",
        )


_LOOKS: tuple[Callable[[Session, Jobs[Any]], Iterator[Finding]], ...] = (
    _server,
    _settings,
    _clock,
    _oldest_transaction,
    _prepared,
    _bloat,
    _vanished,
    _set_aside,
    foreign_keys,
    row_level_security,
    triggers,
)
