"""Constraints and indexes, by table.

PostgreSQL parses all of a table's CHECKs again in each statement that writes to the table, which takes 4 µs per
kilobyte of `pg_constraint.conbin`. In `conbin`, a range is half as long as two comparisons, and a literal array is half
as long as IN.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.elements import conv

from sqla_jobs.models.types import HAS_LIVE_KEY, CatchUp, JobState, Overlap, StepKind, TickOutcome
from sqla_jobs.rules.limits import LONGEST_GATE, MOST_GATES, MOST_RATE, MOST_RUNNING
from sqla_jobs.rules.outcomes import RunOutcome
from sqla_jobs.rules.value_checks import MAX_DEPTH, MAX_ID

BEGUN_OR_ENDED = "state = ANY ('{running,succeeded,failed,cancelled}') OR state LIKE 'running'"
"""The predicate of the index on jobs that run or have ended."""
_APART = "waits_for IS NOT NULL OR retention IS NOT NULL"
_IS_RATE = "ascii(gate) = 37"
"""The condition that the gate begins with %. Drivers would take a literal % for the start of a parameter."""
_PRIORITIES = "CAST('[-10, 10]' AS int4range)"


def of_jobs(table: str) -> tuple[Any, ...]:
    """Return the constraints on jobs, and narrow indexes for the states that queries look for.

    Each statement that writes a job opens all indexes and parses all CHECKs. So the CHECKs state only what other code
    relies on and cannot repair, and no index serves a single page.
    """
    return (
        sa.PrimaryKeyConstraint("id", name=conv(f"{table}_pkey")),
        _one_of(table, "state", JobState),
        _check(table, "priority", f"{_PRIORITIES} @> CAST(priority AS integer)"),
        # only for waiting jobs: otherwise each change to a row would read its arguments, which may be large
        _check(table, "args", "process_id IS NOT NULL OR finished_at IS NOT NULL OR jsonb_typeof(args) = 'object'"),
        _check(table, "attempts", "attempt >= 0 AND max_attempts > 0"),
        _check(table, "lease", "state <> 'running' OR (current_run_id IS NOT NULL AND process_id IS NOT NULL)"),
        _check(table, "gates", f"array_dims(gates) ~ '^.1:[1-{MOST_GATES}].$'"),
        # plain jobs come first, so that a claim for them does not scan past jobs waiting behind limits
        sa.Index(
            f"{table}_queued",
            "queue",
            sa.text("(gates IS NULL)"),
            "priority",
            "position",
            postgresql_where=sa.text("state = 'queued'"),
        ),
        # LIKE, so that the planner uses this index only for queries about gates
        sa.Index(
            f"{table}_gated",
            "queue",
            "gates",
            "priority",
            "position",
            postgresql_where=sa.text("state LIKE 'queued' AND gates IS NOT NULL"),
        ),
        sa.Index(
            f"{table}_holding",
            "current_run_id",
            postgresql_where=sa.text("state = 'running' AND gates IS NOT NULL"),
        ),
        # the head of an ordered key comes first: a job that has begun, or else the one with the lowest position
        sa.Index(
            f"{table}_order",
            "ordered_by",
            "state",
            sa.text("(started_at IS NULL)"),
            "position",
            postgresql_where=sa.text("ordered_by IS NOT NULL"),
        ),
        sa.Index(f"{table}_scheduled", "run_at", postgresql_where=sa.text("state = 'scheduled'")),
        # jobs that run or have ended. The second condition is for queries of version 2 that use LIKE
        sa.Index(f"{table}_state", "state", "finished_at", postgresql_where=sa.text(BEGUN_OR_ENDED)),
        # jobs that watch another one, and those that the pruner deletes by a retention of their own
        sa.Index(f"{table}_apart", "state", "waits_for", postgresql_where=sa.text(_APART)),
        sa.Index(f"{table}_batch", "batch_id", "state", "id", postgresql_where=sa.text("batch_id IS NOT NULL")),
        sa.Index(
            f"{table}_ticks",
            "schedule_id",
            "scheduled_for",
            unique=True,
            postgresql_where=sa.text("schedule_id IS NOT NULL"),
        ),
        sa.Index(
            f"{table}_unique_key",
            "unique_key",
            unique=True,
            postgresql_where=sa.text(HAS_LIVE_KEY),
        ),
        sa.Index(
            f"{table}_unique_period",
            "unique_key",
            "unique_period",
            unique=True,
            postgresql_where=sa.text("unique_period IS NOT NULL"),
        ),
    )


def of_runs(table: str) -> tuple[Any, ...]:
    """Return the constraints and indexes on runs."""
    return (
        sa.PrimaryKeyConstraint("id", name=conv(f"{table}_pkey")),
        _one_of(table, "outcome", RunOutcome),
        _check(table, "id", _ID),
        _check(table, "attempt", "attempt >= 0"),
        _check(table, "times", _in_range("started_at", "finished_at", "untold_at")),
        sa.Index(f"{table}_job_id", "job_id"),
        # the next two indexes serve the dashboard's charts, and cost next to nothing when a successful job ends
        sa.Index(f"{table}_finished_at", "finished_at", postgresql_using="brin"),
        sa.Index(
            f"{table}_failed",
            "finished_at",
            postgresql_where=sa.text("outcome IN ('failed', 'retried', 'lost')"),
        ),
        sa.Index(f"{table}_untold", "untold_at", postgresql_where=sa.text("untold_at IS NOT NULL")),
    )


def of_schedules(table: str) -> tuple[Any, ...]:
    """Return the constraints on schedules."""
    return (
        sa.PrimaryKeyConstraint("id", name=conv(f"{table}_pkey")),
        sa.UniqueConstraint("name", name=conv(f"{table}_name_key")),
        _one_of(table, "catch_up", CatchUp),
        _one_of(table, "overlap", Overlap),
        _check(table, "id", _ID),
        _check(table, "priority", "priority BETWEEN -10 AND 10"),
        _check(table, "args", _object("args")),
        _check(table, "declared_values", _object("declared_values")),
        _check(table, "jitter", "jitter BETWEEN 0 AND 86400"),
        _check(table, "times", _in_range("next_run_at", "last_run_at", "declared_at", "retired_at")),
    )


def of_ticks(table: str) -> tuple[Any, ...]:
    """Return the constraints and the index on ticks."""
    return (
        sa.PrimaryKeyConstraint("id", name=conv(f"{table}_pkey")),
        _one_of(table, "outcome", TickOutcome),
        _check(table, "id", _ID),
        _check(table, "count", "count > 0"),
        _check(table, "times", _in_range("scheduled_for", "until", "at")),
        sa.Index(f"{table}_schedule", "schedule_id", "scheduled_for"),
    )


def of_processes(table: str) -> tuple[Any, ...]:
    """Return the constraints on processes."""
    return (
        sa.PrimaryKeyConstraint("id", name=conv(f"{table}_pkey")),
        _check(table, "queues", _object("queues")),
        _check(table, "tasks", _object("tasks")),
        _check(table, "set_aside", _object("set_aside")),
        _check(table, "clock_offset", "clock_offset BETWEEN -1e10 AND 1e10"),
        _check(table, "lease", "lease > 0 AND lease <= 86400"),
        _check(table, "times", _in_range("started_at", "heartbeat_at", "last_finished_at", "stalled_since")),
    )


def of_queues(table: str) -> tuple[Any, ...]:
    """Return the constraints on queues."""
    return (
        sa.PrimaryKeyConstraint("name", name=conv(f"{table}_pkey")),
        _check(table, "times", _in_range("paused_at", "paused_until")),
    )


def of_paused_tasks(table: str) -> tuple[Any, ...]:
    """Return the constraints on paused tasks."""
    return (
        sa.PrimaryKeyConstraint("name", name=conv(f"{table}_pkey")),
        _check(table, "times", _in_range("paused_at", "paused_until")),
    )


def of_limits(table: str) -> tuple[Any, ...]:
    """Return the constraints on limits."""
    return (
        sa.PrimaryKeyConstraint("gate", name=conv(f"{table}_pkey")),
        _check(
            table,
            "gate",
            f"({_IS_RATE} OR left(gate, 1) IN ('#', '!', '@')) AND length(gate) BETWEEN 2 AND {LONGEST_GATE}",
        ),
        _check(table, "numbers", f"running BETWEEN 0 AND {MOST_RUNNING} AND rate BETWEEN 0 AND {MOST_RATE}"),
        _check(table, "per", "(rate IS NULL) = (per IS NULL) AND per BETWEEN 1 AND 86400"),
        _check(table, "kind", f"CASE WHEN {_IS_RATE} THEN running IS NULL ELSE rate IS NULL END"),
        _check(table, "ordered", "left(gate, 1) <> '!' OR running <= 1"),
        _check(table, "declared", _object("declared")),
        _check(table, "times", _in_range("set_at", "changed_at")),
    )


def of_starts(table: str) -> tuple[Any, ...]:
    """Return the constraints on the starts of jobs behind gates."""
    return (
        sa.PrimaryKeyConstraint("gate", "started_at", "total", name=conv(f"{table}_pkey")),
        _check(table, "total", f"count BETWEEN 1 AND {MOST_RUNNING} AND total BETWEEN count AND {MAX_ID}"),
        _check(table, "times", _in_range("started_at")),
    )


def of_batches(table: str) -> tuple[Any, ...]:
    """Return the constraints on batches."""
    return (
        sa.PrimaryKeyConstraint("id", name=conv(f"{table}_pkey")),
        _check(table, "id", _ID),
        _check(table, "times", _in_range("created_at", "closed_at")),
    )


def of_edges(table: str, job_id: Any) -> tuple[Any, ...]:
    """Return the constraints and indexes on edges between jobs. `job_id` is the column of jobs that they refer to.

    The job in `needs_id` cannot be deleted while an edge refers to it, and the pruner of every version respects that.
    The constraint is deferred, so that one transaction can delete both jobs of an edge in any order.
    """
    return (
        sa.PrimaryKeyConstraint("job_id", "place", name=conv(f"{table}_pkey")),
        _of_job(table, "job_id", job_id, ondelete="CASCADE"),
        _of_job(table, "needs_id", job_id, deferrable=True, initially="DEFERRED"),
        _check(table, "place", "place > 0"),
        _check(table, "needs_id", "needs_id < job_id AND num_nonnulls(needs_id, batch_id) < 2"),
        sa.Index(f"{table}_needs_id", "needs_id", postgresql_where=sa.text("needs_id IS NOT NULL")),
        sa.Index(f"{table}_batch_id", "batch_id", postgresql_where=sa.text("batch_id IS NOT NULL")),
        # finds a job's few edges to batches, even if it has thousands of edges to jobs
        sa.Index(f"{table}_batches", "job_id", postgresql_where=sa.text("batch_id IS NOT NULL")),
    )


def of_steps(table: str, job_id: Any) -> tuple[Any, ...]:
    """Return the constraints on steps."""
    return (
        sa.PrimaryKeyConstraint("job_id", "name", name=conv(f"{table}_pkey")),
        _of_job(table, "job_id", job_id, ondelete="CASCADE"),
        _one_of(table, "kind", StepKind),
        _check(table, "number", "number BETWEEN 1 AND 1000"),
        _check(table, "times", _in_range("started_at", "finished_at", "until")),
    )


def of_signals(table: str, job_id: Any) -> tuple[Any, ...]:
    """Return the constraints and the index on signals."""
    return (
        sa.PrimaryKeyConstraint("id", name=conv(f"{table}_pkey")),
        _of_job(table, "job_id", job_id, ondelete="CASCADE"),
        _check(table, "id", _ID),
        _check(table, "times", _in_range("sent_at")),
        sa.Index(f"{table}_job_id", "job_id", "name", "id"),
    )


def _of_job(table: str, column: str, job_id: Any, **options: Any) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [job_id], name=conv(f"{table}_{column}_fkey"), **options)


def of_audit(table: str) -> tuple[Any, ...]:
    """Return the constraints on the audit log."""
    return (
        sa.PrimaryKeyConstraint("id", name=conv(f"{table}_pkey")),
        _check(table, "id", _ID),
        _check(table, "details", _object("details")),
        _check(table, "times", _in_range("at")),
    )


def _check(table: str, name: str, rule: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(rule, name=conv(f"{table}_{name}_check"))


def _one_of(table: str, column: str, words: Any) -> sa.CheckConstraint:
    return _check(table, column, f"{column} = ANY ('{{{','.join(words)}}}')")


_ID = f"CAST('[1, {MAX_ID}]' AS int8range) @> id"


def _object(column: str) -> str:
    """Return a CHECK for a JSON object whose depth and numbers every JSON parser can handle. (NULL passes.)"""
    is_sound = f"!exists (@.**{{{MAX_DEPTH}}}) && !exists (@.** ? (@ > 1e300 || @ < -1e300))"
    return f"{column} @? 'strict $ ? (@.type() == \"object\" && {is_sound})'"


def _in_range(*columns: str) -> str:
    """Return a CHECK that every driver can read the columns' times in every time zone.

    NULL passes; 'infinity' does not.
    """
    moments = "CAST('[1000-01-01 UTC, 9000-01-01 UTC)' AS tstzrange)"
    return f"{moments} @> ALL (ARRAY[{', '.join(columns)}])" if columns[1:] else f"{moments} @> {columns[0]}"
