"""Constraints and indexes, by table.

PostgreSQL parses all of a table's CHECKs again in each statement that writes to the table, which takes 4 µs per
kilobyte of `pg_constraint.conbin`. In `conbin`, a range is half as long as two comparisons, and a literal array is half
as long as IN.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index, PrimaryKeyConstraint, UniqueConstraint, text
from sqlalchemy.sql.elements import conv

from sqla_jobs.models.types import HAS_LIVE_KEY, MOST_ATTEMPTS, CatchUp, JobState, Overlap, StepKind, TickOutcome
from sqla_jobs.rules.checks import MAX_DEPTH, MAX_ID
from sqla_jobs.rules.limits import LONGEST_GATE, MOST_GATES, MOST_RATE, MOST_RUNNING, PLACES
from sqla_jobs.rules.outcomes import RunOutcome
from sqla_jobs.rules.redaction import ERASED_ARGS

BEGUN = "ordered_by IS NOT NULL AND started_at IS NOT NULL AND state NOT IN ('running', 'succeeded', 'cancelled')"
"""The predicate of the index on started jobs that have an ordered key."""
_IS_RATE = "ascii(gate) = 37"
"""The condition that the gate begins with %. Drivers would take a literal % for the start of a parameter."""
_ATTEMPTS = f"CAST('[1, {MOST_ATTEMPTS}]' AS int4range)"
_PRIORITIES = "CAST('[-10, 10]' AS int4range)"
_ON_FAILURE = (
    "on_failure IS NULL OR (on_failure ->> 'task') IS NOT NULL "
    f"AND {_PRIORITIES} @> CAST(on_failure ->> 'priority' AS integer) "
    f"AND {_ATTEMPTS} @> CAST(on_failure ->> 'max_attempts' AS integer)"
)
_IS_PARKED = "run_at = 'infinity' AND state = ANY ('{scheduled,cancelled}')"


def of_jobs(table: str) -> tuple[Any, ...]:
    """Return the constraints on jobs, and narrow indexes for the states that queries look for."""
    moments = _in_range(
        *("created_at", "scheduled_for", "cancel_requested_at", "started_at", "finished_at", "unique_period")
    )
    return (
        PrimaryKeyConstraint("id", name=conv(f"{table}_pkey")),
        _one_of(table, "state", JobState),
        _check(table, "id", _ID),
        _check(table, "priority", f"{_PRIORITIES} @> CAST(priority AS integer)"),
        _check(table, "position", "position > 0"),
        # only for waiting jobs: otherwise each change to a row would read its arguments, which may be large
        _check(
            table,
            "args",
            "state <> ALL ('{blocked,scheduled,queued}') OR jsonb_typeof(args) = 'object' AND args <> "
            f"'{json.dumps(ERASED_ARGS)}'",
        ),
        _check(
            table, "attempts", f"CAST('[0, {MOST_ATTEMPTS}]' AS int4range) @> attempt AND {_ATTEMPTS} @> max_attempts"
        ),
        _check(table, "max_lost", "max_lost > 0"),
        _check(table, "lease", "state <> 'running' OR (current_run_id IS NOT NULL AND process_id IS NOT NULL)"),
        _check(
            table,
            "gates",
            f"array_dims(gates) ~ '^.1:[1-{MOST_GATES}].$' AND array_position(gates, NULL) IS NULL "
            "AND ordered_by = ANY (gates)",
        ),
        _check(table, "if_failed", "if_failed = ANY ('{cancel,run,hold}')"),
        _check(table, "headers", _object("headers")),
        # if the `on_failure` job could not be inserted, the failure could not be stored
        _check(table, "on_failure", _ON_FAILURE),
        _check(table, "progress", "CAST('[0, 1]' AS numrange) @> CAST(progress AS numeric)"),
        _check(table, "times", moments),
        _check(table, "run_at", f"{_in_range('run_at')} OR {_IS_PARKED}"),
        # plain jobs come first, so that a claim for them does not scan past jobs waiting behind limits
        Index(
            f"{table}_queued",
            "queue",
            text("(gates IS NULL)"),
            "priority",
            "position",
            postgresql_where=text("state = 'queued'"),
        ),
        Index(
            f"{table}_gated",
            "queue",
            "gates",
            "priority",
            "position",
            postgresql_where=text("state LIKE 'queued' AND gates IS NOT NULL"),
        ),
        # running jobs by gate: one index for each position that a gate can have among a job's gates. Some predicates of
        # these indexes use LIKE, so that the planner uses each index only for its own query
        *(
            Index(
                f"{table}_holding{place}",
                text(f"(gates[{place}])"),
                "current_run_id",
                postgresql_where=text(f"state LIKE 'running' AND gates[{place}] IS NOT NULL"),
            )
            for place in range(1, PLACES + 1)
        ),
        Index(
            f"{table}_ordered",
            "ordered_by",
            "position",
            postgresql_where=text("state LIKE 'queued' AND ordered_by IS NOT NULL"),
        ),
        Index(
            f"{table}_begun",
            "ordered_by",
            "state",
            "position",
            postgresql_where=text(BEGUN),
        ),
        Index(f"{table}_scheduled", "run_at", postgresql_where=text("state = 'scheduled'")),
        Index(f"{table}_running", "process_id", postgresql_where=text("state = 'running'")),
        Index(
            f"{table}_ended",
            "state",
            "finished_at",
            postgresql_where=text("state IN ('succeeded', 'failed', 'cancelled')"),
        ),
        # the next two indexes contain no succeeded jobs. They find one task's failures without reading those of others
        Index(f"{table}_failed", "task", "finished_at", postgresql_where=text("state = 'failed'")),
        Index(
            f"{table}_retrying",
            "task",
            "run_at",
            postgresql_where=text("state IN ('scheduled', 'queued') AND started_at IS NOT NULL"),
        ),
        Index(f"{table}_waits_for", "state", "waits_for", postgresql_where=text("waits_for IS NOT NULL")),
        Index(f"{table}_batch", "batch_id", "state", "id", postgresql_where=text("batch_id IS NOT NULL")),
        Index(
            f"{table}_ticks",
            "schedule_id",
            "scheduled_for",
            unique=True,
            postgresql_where=text("schedule_id IS NOT NULL"),
        ),
        Index(
            f"{table}_unique_key",
            "unique_key",
            unique=True,
            postgresql_where=text(HAS_LIVE_KEY),
        ),
        Index(
            f"{table}_unique_period",
            "unique_key",
            "unique_period",
            unique=True,
            postgresql_where=text("unique_period IS NOT NULL"),
        ),
    )


def of_runs(table: str) -> tuple[Any, ...]:
    """Return the constraints and indexes on runs."""
    return (
        PrimaryKeyConstraint("id", name=conv(f"{table}_pkey")),
        _one_of(table, "outcome", RunOutcome),
        _check(table, "id", _ID),
        _check(table, "attempt", "attempt >= 0"),
        _check(table, "times", _in_range("started_at", "finished_at", "untold_at")),
        Index(f"{table}_job_id", "job_id"),
        # the next two indexes serve the dashboard's charts, and cost next to nothing when a successful job ends
        Index(f"{table}_finished_at", "finished_at", postgresql_using="brin"),
        Index(
            f"{table}_failed",
            "finished_at",
            postgresql_where=text("outcome IN ('failed', 'retried', 'lost')"),
        ),
        Index(f"{table}_untold", "untold_at", postgresql_where=text("untold_at IS NOT NULL")),
    )


def of_schedules(table: str) -> tuple[Any, ...]:
    """Return the constraints on schedules."""
    return (
        PrimaryKeyConstraint("id", name=conv(f"{table}_pkey")),
        UniqueConstraint("name", name=conv(f"{table}_name_key")),
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
        PrimaryKeyConstraint("id", name=conv(f"{table}_pkey")),
        _one_of(table, "outcome", TickOutcome),
        _check(table, "id", _ID),
        _check(table, "count", "count > 0"),
        _check(table, "times", _in_range("scheduled_for", "until", "at")),
        Index(f"{table}_schedule", "schedule_id", "scheduled_for"),
    )


def of_processes(table: str) -> tuple[Any, ...]:
    """Return the constraints on processes."""
    return (
        PrimaryKeyConstraint("id", name=conv(f"{table}_pkey")),
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
        PrimaryKeyConstraint("name", name=conv(f"{table}_pkey")),
        _check(table, "times", _in_range("paused_at", "paused_until")),
    )


def of_paused_tasks(table: str) -> tuple[Any, ...]:
    """Return the constraints on paused tasks."""
    return (
        PrimaryKeyConstraint("name", name=conv(f"{table}_pkey")),
        _check(table, "times", _in_range("paused_at", "paused_until")),
    )


def of_limits(table: str) -> tuple[Any, ...]:
    """Return the constraints on limits."""
    return (
        PrimaryKeyConstraint("gate", name=conv(f"{table}_pkey")),
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
        PrimaryKeyConstraint("gate", "started_at", "total", name=conv(f"{table}_pkey")),
        _check(table, "total", f"count BETWEEN 1 AND {MOST_RUNNING} AND total BETWEEN count AND {MAX_ID}"),
        _check(table, "times", _in_range("started_at")),
    )


def of_batches(table: str) -> tuple[Any, ...]:
    """Return the constraints on batches."""
    return (
        PrimaryKeyConstraint("id", name=conv(f"{table}_pkey")),
        _check(table, "id", _ID),
        _check(table, "times", _in_range("created_at", "closed_at")),
    )


def of_edges(table: str, job_id: Any) -> tuple[Any, ...]:
    """Return the constraints and indexes on edges between jobs. `job_id` is the column of jobs that they refer to.

    The job in `needs_id` cannot be deleted while an edge refers to it, and the pruner of every version respects that.
    The constraint is deferred, so that one transaction can delete both jobs of an edge in any order.
    """
    return (
        PrimaryKeyConstraint("job_id", "place", name=conv(f"{table}_pkey")),
        _of_job(table, "job_id", job_id, ondelete="CASCADE"),
        _of_job(table, "needs_id", job_id, deferrable=True, initially="DEFERRED"),
        _check(table, "place", "place > 0"),
        _check(table, "needs_id", "needs_id < job_id AND num_nonnulls(needs_id, batch_id) < 2"),
        Index(f"{table}_needs_id", "needs_id", postgresql_where=text("needs_id IS NOT NULL")),
        Index(f"{table}_batch_id", "batch_id", postgresql_where=text("batch_id IS NOT NULL")),
        # finds a job's few edges to batches, even if it has thousands of edges to jobs
        Index(f"{table}_batches", "job_id", postgresql_where=text("batch_id IS NOT NULL")),
    )


def of_steps(table: str, job_id: Any) -> tuple[Any, ...]:
    """Return the constraints on steps."""
    return (
        PrimaryKeyConstraint("job_id", "name", name=conv(f"{table}_pkey")),
        _of_job(table, "job_id", job_id, ondelete="CASCADE"),
        _one_of(table, "kind", StepKind),
        _check(table, "number", "number BETWEEN 1 AND 1000"),
        _check(table, "times", _in_range("started_at", "finished_at", "until")),
    )


def of_signals(table: str, job_id: Any) -> tuple[Any, ...]:
    """Return the constraints and the index on signals."""
    return (
        PrimaryKeyConstraint("id", name=conv(f"{table}_pkey")),
        _of_job(table, "job_id", job_id, ondelete="CASCADE"),
        _check(table, "id", _ID),
        _check(table, "times", _in_range("sent_at")),
        Index(f"{table}_job_id", "job_id", "name", "id"),
    )


def _of_job(table: str, column: str, job_id: Any, **options: Any) -> ForeignKeyConstraint:
    return ForeignKeyConstraint([column], [job_id], name=conv(f"{table}_{column}_fkey"), **options)


def of_audit(table: str) -> tuple[Any, ...]:
    """Return the constraints on the audit log."""
    return (
        PrimaryKeyConstraint("id", name=conv(f"{table}_pkey")),
        _check(table, "id", _ID),
        _check(table, "details", _object("details")),
        _check(table, "times", _in_range("at")),
    )


def _check(table: str, name: str, rule: str) -> CheckConstraint:
    return CheckConstraint(rule, name=conv(f"{table}_{name}_check"))


def _one_of(table: str, column: str, words: Any) -> CheckConstraint:
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
