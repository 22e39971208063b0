"""The minimum database privileges of enqueuers, workers and viewers, as SQL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.dialects import postgresql
from sqlalchemy.sql.compiler import IdentifierPreparer

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.queries.erasing import ERASED_COLUMNS

_GATES = ("gates", "ordered_by")
_ENQUEUED = (
    *("task", "queue", "priority", "args", "state", "run_at", "max_attempts", "max_lost", "unique_key"),
    *("unique_period", "headers", "on_failure", "timeout", "retention", "expires_at"),
    *_GATES,
)
_AFTER = ("waits_for", "waits_at", "if_failed", "batch_id", "finished_at")
"""Columns of a job that is enqueued after other jobs, or in a batch."""
_EDGE = ("job_id", "place", "needs_id", "batch_id")
_BATCH = ("name", "closed_at")
"""`closed_at` is included because an INSERT by the ORM names each column that has no default."""
_TICK = ("schedule_id", "scheduled_for")
"""Columns of a job that a clock enqueues. A role that may insert into them can enqueue a job in the place of a tick's
job."""
_LOCKING = "progress_message"
"""The column whose UPDATE privilege lets a role lock rows. The column is only displayed, and each claim empties it."""
_REPLACED = (
    *("position", "times_replaced", "created_at"),
    *("attempt", "started_at", "progress", "progress_message"),
)
_MOVED = (
    *("state", "position", "run_at", "attempt", "current_run_id", "process_id"),
    *("started_at", "finished_at", "progress", "progress_message"),
    *("waits_for", "waits_at"),
    *_GATES,
)
_DECLARED = (
    *("task", "cron", "timezone", "args", "queue", "priority", "catch_up", "overlap", "jitter", "enabled"),
    *("declared", "declared_values", "declared_at"),
)
_PLANNED = ("next_run_at", "last_run_at", "planned_rule", "disabled_reason", "retired_at")
_LIMIT = ("running", "rate", "per", "hold", "tasks", "declared", "changed_at")
_STEP = ("kind", "finished_at", "result")
_WOKEN = ("state", "position", "run_at")
_STAMPED = ("heartbeat_at", "set_aside", "clock_offset", "last_finished_at", "stalled_since")


@dataclass(frozen=True)
class Roles:
    """The names of database roles, by their purpose. Raises `ConfigurationError`."""

    enqueuers: Sequence[str] = ()
    workers: Sequence[str] = ()
    viewers: Sequence[str] = ()

    def __post_init__(self) -> None:
        named = [*self.enqueuers, *self.workers, *self.viewers]
        if not named:
            raise ConfigurationError("no role is named: give --enqueuer ROLE, --worker ROLE or --viewer ROLE")
        for role in named:
            if not 0 < len(role.encode()) <= 63 or not role.isprintable():
                raise ConfigurationError(f"a role name must be 1 to 63 bytes of printable characters, got {role!r:.80}")
            if role in ("public", "none"):
                raise ConfigurationError(f"{role!r} is a keyword of PostgreSQL and not a role: name a role")


def grants(models: Models[Any], roles: Roles) -> Iterator[str]:
    """Yield the statements, with comments, line by line. The statements grant privileges, and revoke none."""
    name = _Names(models)
    for role in roles.enqueuers:
        yield from _to(role, "enqueues", name, _enqueuer(name))
    for role in roles.workers:
        yield from _to(role, "runs workers and clocks", name, _worker(name))
    for role in roles.viewers:
        yield from _to(role, "looks, by the dashboard or the command line", name, _viewer(name))


class _Names:
    """The names of tables, sequences and columns, quoted if necessary."""

    def __init__(self, models: Models[Any]) -> None:
        self._preparer: IdentifierPreparer = postgresql.dialect().identifier_preparer  # type: ignore[no-untyped-call]
        self.schema = models.positions.schema
        self.tables = {noun: self._preparer.format_table(table) for noun, table in models.tables.items()}
        self.sequences = [self._preparer.format_sequence(one) for one in (models.positions, models.run_ids)]
        # in a job_class, the name of a column may differ from that of its attribute
        ours = set(JobMixin.__annotations__)
        self.own = [column.name for column in models.tables["jobs"].columns if column.name not in ours]

    def quote(self, identifier: str) -> str:
        return self._preparer.quote(identifier)

    def role(self, role: str) -> str:
        return self._preparer.quote_identifier(role)

    def columns(self, right: str, *columns: str) -> str:
        return f"{right} ({', '.join(map(self.quote, columns))})"


Rights = Iterator[tuple[str, str]]
"""Pairs of a privilege and the table on which it is granted. If the table is empty, the pair is a comment."""


def _to(role: str, does: str, name: _Names, rights: Rights) -> Iterator[str]:
    yield f"-- {name.role(role)} {does}"
    if name.schema:
        yield f"GRANT USAGE ON SCHEMA {name.quote(name.schema)} TO {name.role(role)};"
    for right, on in rights:
        yield f"GRANT {right} ON {on} TO {name.role(role)};" if on else f"-- {right}"


def _enqueuer(name: _Names) -> Rights:
    jobs = name.tables["jobs"]
    yield name.columns("INSERT", *_ENQUEUED, *name.own), jobs
    yield name.columns("SELECT", "id"), jobs
    yield "for unique_key= only, which returns the live job and holds it: without it these two can be left out", ""
    yield "SELECT", jobs
    yield name.columns("UPDATE", _LOCKING), jobs
    yield from _changing(name)
    yield from _in_workflows(name)
    yield from _signalling(name)


def _in_workflows(name: _Names) -> Rights:
    """Yield the privileges for workflows as comments, since they let a role lock and read other roles' jobs."""
    tables = name.tables
    yield "for after= and batch= only, grant these as well:", ""
    yield f"  SELECT, {name.columns('INSERT', *_AFTER)}, {name.columns('UPDATE', _LOCKING)} ON {tables['jobs']}", ""
    yield f"  SELECT, {name.columns('INSERT', *_EDGE)} ON {tables['edges']}", ""
    yield f"  SELECT, {name.columns('INSERT', *_BATCH)}, {name.columns('UPDATE', 'name')} ON {tables['batches']}", ""


def _signalling(name: _Names) -> Rights:
    """Yield the privileges to send signals as comments, since they let a role queue other roles' waiting jobs."""
    yield "for jobs.signal only, grant these as well:", ""
    yield f"  SELECT, INSERT ON {name.tables['signals']}", ""
    yield f"  SELECT ON {name.tables['steps']}", ""
    yield f"  SELECT, {name.columns('UPDATE', *_WOKEN)} ON {name.tables['jobs']}", ""
    yield f"  USAGE ON SEQUENCE {name.sequences[0]}", ""


def _worker(name: _Names) -> Rights:
    tables: Mapping[str, str] = name.tables
    yield f"SELECT, DELETE, {name.columns('INSERT', *_ENQUEUED, *_TICK, *_AFTER, *name.own)}", tables["jobs"]
    yield name.columns("UPDATE", *_MOVED), tables["jobs"]
    yield f"SELECT, DELETE, {name.columns('INSERT', *_EDGE)}, {name.columns('UPDATE', 'needs_id')}", tables["edges"]
    yield f"SELECT, DELETE, {name.columns('INSERT', *_BATCH)}, {name.columns('UPDATE', 'closed_at')}", tables["batches"]
    yield from _changing(name)
    yield from _signalling(name)
    yield f"SELECT, INSERT, DELETE, {name.columns('UPDATE', 'traceback', 'untold_at')}", tables["runs"]
    yield 'for tasks with retention={"succeeded": "erase"} only, grant these as well:', ""
    for noun, columns in ERASED_COLUMNS.items():
        yield f"  {name.columns('UPDATE', *columns)} ON {tables[noun]}", ""
    for sequence in name.sequences:
        yield "USAGE", f"SEQUENCE {sequence}"
    yield f"SELECT, {name.columns('INSERT', 'name', *_DECLARED)}", tables["schedules"]
    yield name.columns("UPDATE", *_DECLARED, *_PLANNED), tables["schedules"]
    yield "SELECT, INSERT, DELETE", tables["ticks"]
    yield f"SELECT, INSERT, DELETE, {name.columns('UPDATE', *_STAMPED)}", tables["processes"]
    yield "SELECT", tables["queues"]
    yield "SELECT", tables["paused_tasks"]
    yield f"SELECT, INSERT, {name.columns('UPDATE', *_LIMIT)}", tables["limits"]
    yield "SELECT, INSERT, UPDATE, DELETE", tables["starts"]
    yield f"SELECT, INSERT, DELETE, {name.columns('UPDATE', *_STEP)}", tables["steps"]
    yield "SELECT, DELETE", tables["signals"]
    yield "for the retention of the audit; without it its lines are kept", ""
    yield "SELECT, DELETE", tables["audit"]


def _changing(name: _Names) -> Rights:
    """Yield the privileges to change waiting jobs, as comments.

    These privileges are not granted by default, since they let a role change other roles' jobs.
    """
    yield 'for on_conflict="replace" only, which changes jobs that wait, grant these as well:', ""
    yield f"  {name.columns('UPDATE', *_ENQUEUED, *_REPLACED, *name.own)} ON {name.tables['jobs']}", ""
    yield f"  SELECT ON {name.tables['steps']}", ""
    yield f"  USAGE ON SEQUENCE {name.sequences[0]}", ""


def _viewer(name: _Names) -> Rights:
    for table in name.tables.values():
        yield "SELECT", table
