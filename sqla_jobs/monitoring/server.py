"""Findings about the server: settings, connections, clocks, old transactions and bloat."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from sqla_jobs.database.connection_limits import LIMIT
from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import Finding, Verdict, ask, session_named, table_names, warning, well
from sqla_jobs.queries.processes import is_alive
from sqla_jobs.rules.wording import duration

_OLDEST_SERVER = 140000
_OLD_TRANSACTION = 300.0
_SHORT = 2.0
_CLOCK_OFF = 2.0
_BLOATED = 0.5
_CROWDED = 0.8
_WAITED = 0.5
"""Seconds that a statement may wait for a pooler before a warning."""


def version(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Check that the server is new enough."""
    setting = func.current_setting
    number, name = ask(session, jobs, select(setting("server_version_num"), setting("server_version"))).one()
    if int(number) < _OLDEST_SERVER:
        yield Finding("server version", Verdict.error, f"PostgreSQL {name}", "PostgreSQL 14 or newer is needed")
    else:
        yield well("server version", f"PostgreSQL {name}")


def pooler(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Detect a pooler in front of the server, and measure how long a statement waits for it. This must run first."""
    began = time.monotonic()
    there = ask(session, jobs, select(func.pg_backend_pid())).scalar_one()
    waited = time.monotonic() - began
    connection: Any = session.connection(bind_arguments={"mapper": jobs.Job}).connection.driver_connection
    here = getattr(getattr(connection, "info", None), "backend_pid", there)
    if here == there:
        return
    if waited > _WAITED:
        yield warning(
            "pooler",
            f"in front of the server; this command waited {duration(waited)} for a connection",
            "all connections of its pool are in use: make the pool larger (PgBouncer: default_pool_size), or find the "
            "long transactions that occupy it: `sqla-jobs doctor --database-url URL`, with the server's own address",
        )
    else:
        yield well("pooler", f"in front of the server; this command waited {duration(waited)} for a connection")


_SETTINGS: dict[str, tuple[Callable[[str], bool], str]] = {
    "autovacuum": (lambda value: value == "on", "switch it on: tables of jobs grow without end"),
    "fsync": (lambda value: value == "on", "switch it on: a crash of the host can lose or double jobs"),
    "full_page_writes": (lambda value: value == "on", "switch it on: a crash of the host can damage tables"),
    "track_activities": (lambda value: value == "on", "switch it on, to see who holds a transaction open"),
    "default_transaction_read_only": (lambda value: value == "off", "workers have to write"),
}


def settings(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Check settings that endanger jobs."""
    is_local = _setting(session, jobs, "cluster_name") == "local_postgres"
    for name, (is_good, remedy) in _SETTINGS.items():
        value = _setting(session, jobs, name)
        if is_local and name in ("fsync", "full_page_writes"):
            yield well(name, f"{value}, as local_postgres(durable={value == 'on'}) sets it")
        else:
            yield well(name, value) if is_good(value) else warning(name, value, remedy)


def _setting(session: Session, jobs: Jobs[Any], name: str) -> str:
    return str(ask(session, jobs, select(func.current_setting(name))).scalar_one())


_IDLE = "idle_in_transaction_session_timeout"
_LIMIT = text("SELECT setting::float8 / 1000 FROM pg_settings WHERE name = :name")
_LONG = 3600.0
"""Seconds that a task without a timeout is assumed to need."""


def idle_transactions(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Check that the server does not end idle transactions sooner than the slowest transactional task may finish."""
    limit = ask(session, jobs, _LIMIT, name=_IDLE).scalar_one()
    declared = {task.declaration.name: task.declaration for task in jobs.tasks.values()}
    needed = {name: one.timeout or _LONG for name, one in declared.items() if one.signature.wants_session}
    slowest = max(needed, key=needed.__getitem__, default=None)
    if limit and slowest is not None and needed[slowest] > limit:
        yield warning(
            _IDLE,
            f"{duration(limit)}, and task {slowest} may take longer",
            "if a task runs no statement for so long, the server ends its transaction and the attempt fails; let "
            f"workers connect with create_engine(…, connect_args={{'options': '-c {_IDLE}=0'}})",
        )
    else:
        yield well(_IDLE, duration(limit) if limit else "off")


def connections(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Check that enough connections are left."""
    used, most = ask(session, jobs, text(LIMIT)).one()
    process = jobs.Process
    fleet = ask(
        session, jobs, select(func.coalesce(func.sum(process.connections), 0)).where(is_alive(process))
    ).scalar()
    found = f"{used} of {most} are in use, and live workers and clocks may use up to {fleet}"
    if used > _CROWDED * most or fleet > most:
        yield warning(
            "connections",
            found,
            "raise max_connections, lower --processes or the concurrency of workers, "
            "or put PgBouncer in front of the server",
        )
    else:
        yield well("connections", found)


def clock_of_this_host(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Compare this host's clock with the server's."""
    before = datetime.now(UTC)
    there = ask(session, jobs, select(func.clock_timestamp())).scalar_one()
    off = max((before - there).total_seconds(), (there - datetime.now(UTC)).total_seconds(), 0.0)
    found = f"{off:.1f} s off the server's"
    if off > _CLOCK_OFF:
        remedy = "the server's clock decides when jobs are due, so a run_at computed here is off: set this clock by NTP"
        yield warning("clock of this host", found, remedy)
    else:
        yield well("clock of this host", found)


_OLDEST = text(
    """
    SELECT pid, usename, application_name, host(client_addr), state,
      extract(epoch FROM now() - xact_start)::float8 AS age, query
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
      AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
    ORDER BY xact_start LIMIT 1
    """
)


def _what_holds_up_vacuum(session: Session, jobs: Jobs[Any]) -> str:
    """Return the beginning of a remedy: the transaction to end first. Return an empty string if none is old."""
    row = ask(session, jobs, _OLDEST).one_or_none()
    if row is None or row.age < _SHORT:
        return ""
    return (
        f"the oldest transaction, of pid {row.pid}, began {duration(row.age)} ago, and vacuum keeps all rows that died "
        f"since: if nobody needs it, SELECT pg_terminate_backend({row.pid}, 5000); then "
    )


def oldest_transaction(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Check the age of the oldest transaction in this database.

    The check's own transaction, and transactions that this user may not see, are left out.
    """
    row = ask(session, jobs, _OLDEST).one_or_none()
    if row is None:
        yield well("oldest transaction", "no other transaction")
        return
    pid, user, program, address, state, age, query = row
    who = session_named(pid, user, address, program)
    found = f"{duration(age)}, {state}, {who}: {' '.join((query or '').split())[:100]}"
    if age > _OLD_TRANSACTION:
        remedy = "vacuum keeps all rows that died since it began, so every queue gets slower; end it: "
        yield warning("oldest transaction", found, f"{remedy}SELECT pg_terminate_backend({pid})")
    else:
        yield well("oldest transaction", found)


_PREPARED = text(
    """
    SELECT gid, extract(epoch FROM now() - prepared)::float8
    FROM pg_prepared_xacts WHERE database = current_database()
    """
)


def prepared_transactions(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find prepared transactions."""
    for name, age in ask(session, jobs, _PREPARED):
        yield warning(
            "prepared transaction",
            f"{name!r}, {duration(age)} old",
            f"it keeps its locks until it is ended: ROLLBACK PREPARED '{name}'",
        )


_SIZES = text(
    """
    SELECT n_live_tup, n_dead_tup, last_autovacuum, pg_total_relation_size(relid) FROM pg_stat_user_tables
    WHERE relid = CAST(:name AS regclass)
    """
)


def bloat(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find tables with more dead rows than vacuum should leave."""
    for name in table_names(session, jobs, ("jobs", "runs", "processes")):
        row = ask(session, jobs, _SIZES, name=name).one_or_none()
        if row is None:
            continue
        live, dead, vacuumed, size = row
        found = f"{size / 2**20:.0f} MB, {live:,} rows, {dead:,} dead, vacuumed {vacuumed or 'never'}"
        if dead > 10_000 and dead > _BLOATED * (live + dead):
            yield warning(f"table {name}", found, f"{_what_holds_up_vacuum(session, jobs)}VACUUM {name}")
        else:
            yield well(f"table {name}", found)
