"""The tables of 0.2, with which each installation begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqla_jobs.migrations.names import Names

if TYPE_CHECKING:
    from alembic.operations import Operations

_MADE = "made by sqla_jobs"
"""The comment that marks a schema as created here, so that it may be dropped again."""


def upgrade(op: Operations, names: Names) -> None:
    """Create the schema if it is missing, the tables, and their indexes."""
    if names.schema:
        op.execute(_make_schema(names.schema))
    for statement in _tables(names):
        op.execute(statement)
    for kind, indexes in (("INDEX", INDEXES), ("UNIQUE INDEX", _UNIQUE)):
        for index, on in indexes.items():
            noun, _, definition = on.partition(" ")
            op.execute(f"CREATE {kind} {names.prefix}{index} ON {names.table(noun)} {definition}")


def downgrade(op: Operations, names: Names) -> None:
    """Drop the tables with everything that belongs to them, and the schema if it was created here and is empty."""
    for noun in (
        "signals",
        "steps",
        "edges",
        "batches",
        "audit",
        "starts",
        "limits",
        "paused_tasks",
        "queues",
        "processes",
        "ticks",
        "schedules",
        "runs",
        "jobs",
    ):
        op.execute(f"DROP TABLE {names.table(noun)}")
    if names.schema:
        op.execute(_drop_schema(names.schema))


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _make_schema(schema: str) -> str:
    """Return SQL that creates a missing schema. IF NOT EXISTS needs the CREATE privilege even if the schema exists."""
    return f"""
DO $$
BEGIN
    IF to_regnamespace({_literal(schema)}) IS NULL THEN
        CREATE SCHEMA {schema};
        COMMENT ON SCHEMA {schema} IS {_literal(_MADE)};
    END IF;
END $$"""


def _drop_schema(schema: str) -> str:
    return f"""
DO $$
BEGIN
    IF obj_description(to_regnamespace({_literal(schema)}), 'pg_namespace') = {_literal(_MADE)} THEN
        DROP SCHEMA {schema};
    END IF;
EXCEPTION WHEN dependent_objects_still_exist THEN
    NULL;
END $$"""


def _one_of(column: str, *words: str) -> str:
    return f"{column} = ANY ('{{{','.join(words)}}}')"


def _object(column: str) -> str:
    is_sound = "!exists (@.**{100}) && !exists (@.** ? (@ > 1e300 || @ < -1e300))"
    return f"{column} @? 'strict $ ? (@.type() == \"object\" && {is_sound})'"


_MOMENTS = "CAST('[1000-01-01 UTC, 9000-01-01 UTC)' AS tstzrange)"


def _times(*columns: str) -> str:
    return f"{_MOMENTS} @> " + (f"ALL (ARRAY[{', '.join(columns)}])" if columns[1:] else columns[0])


_ID = "CAST('[1, 9000000000000000000]' AS int8range) @> id"

CHECKS = {
    "state": _one_of("state", "blocked", "scheduled", "queued", "running", "succeeded", "failed", "cancelled"),
    "id": _ID,
    "priority": "CAST('[-10, 10]' AS int4range) @> CAST(priority AS integer)",
    "position": "position > 0",
    "args": (
        "state <> ALL ('{blocked,scheduled,queued}') OR jsonb_typeof(args) = 'object' "
        "AND args <> '{\"(erased)\": true}'"
    ),
    "attempts": (
        "CAST('[0, 1000000000]' AS int4range) @> attempt AND CAST('[1, 1000000000]' AS int4range) @> max_attempts"
    ),
    "lease": "state <> 'running' OR (current_run_id IS NOT NULL AND process_id IS NOT NULL)",
    "gates": "array_dims(gates) ~ '^.1:[1-6].$' AND array_position(gates, NULL) IS NULL AND ordered_by = ANY (gates)",
    "headers": _object("headers"),
    "on_failure": (
        "on_failure IS NULL OR (on_failure ->> 'task') IS NOT NULL "
        "AND CAST('[-10, 10]' AS int4range) @> CAST(on_failure ->> 'priority' AS integer) "
        "AND CAST('[1, 1000000000]' AS int4range) @> CAST(on_failure ->> 'max_attempts' AS integer)"
    ),
    "if_failed": _one_of("if_failed", "cancel", "run", "hold"),
    "progress": "CAST('[0, 1]' AS numrange) @> CAST(progress AS numeric)",
    "times": _times("created_at", "scheduled_for", "cancel_requested_at", "started_at", "finished_at", "unique_period"),
    "run_at": f"{_MOMENTS} @> run_at OR run_at = 'infinity' AND {_one_of('state', 'scheduled', 'cancelled')}",
}
"""The CHECKs of jobs, by their names without the table's."""
INDEXES = {
    "jobs_queued": "jobs (queue, (gates IS NULL), priority, position) WHERE state = 'queued'",
    "jobs_gated": "jobs (queue, gates, priority, position) WHERE state LIKE 'queued' AND gates IS NOT NULL",
    **{
        f"jobs_holding{place}": (
            f"jobs ((gates[{place}]), current_run_id) WHERE state LIKE 'running' AND gates[{place}] IS NOT NULL"
        )
        for place in (1, 2, 3, 4, 5)
    },
    "jobs_ordered": "jobs (ordered_by, position) WHERE state LIKE 'queued' AND ordered_by IS NOT NULL",
    "jobs_begun": (
        "jobs (ordered_by, state, position) WHERE ordered_by IS NOT NULL AND started_at IS NOT NULL "
        "AND state NOT IN ('running', 'succeeded', 'cancelled')"
    ),
    "jobs_scheduled": "jobs (run_at) WHERE state = 'scheduled'",
    "jobs_running": "jobs (process_id) WHERE state = 'running'",
    "jobs_ended": "jobs (state, finished_at) WHERE state IN ('succeeded', 'failed', 'cancelled')",
    "jobs_failed": "jobs (task, finished_at) WHERE state = 'failed'",
    "jobs_retrying": "jobs (task, run_at) WHERE state IN ('scheduled', 'queued') AND started_at IS NOT NULL",
    "jobs_waits_for": "jobs (state, waits_for) WHERE waits_for IS NOT NULL",
    "jobs_batch": "jobs (batch_id, state, id) WHERE batch_id IS NOT NULL",
    "runs_job_id": "runs (job_id)",
    "runs_finished_at": "runs USING brin (finished_at)",
    "runs_failed": "runs (finished_at) WHERE outcome IN ('failed', 'retried', 'lost')",
    "runs_untold": "runs (untold_at) WHERE untold_at IS NOT NULL",
    "ticks_schedule": "ticks (schedule_id, scheduled_for)",
    "edges_needs_id": "edges (needs_id) WHERE needs_id IS NOT NULL",
    "edges_batch_id": "edges (batch_id) WHERE batch_id IS NOT NULL",
    "edges_batches": "edges (job_id) WHERE batch_id IS NOT NULL",
    "signals_job_id": "signals (job_id, name, id)",
}
"""The table and the definition of each index, by its name without the prefix."""
_UNIQUE = {
    "jobs_ticks": "jobs (schedule_id, scheduled_for) WHERE schedule_id IS NOT NULL",
    "jobs_unique_key": (
        "jobs (unique_key) WHERE unique_key IS NOT NULL AND state IN ('blocked', 'scheduled', 'queued', 'running')"
    ),
    "jobs_unique_period": "jobs (unique_key, unique_period) WHERE unique_period IS NOT NULL",
}
"""The same of the unique indexes."""


def _tables(names: Names) -> tuple[str, ...]:
    """Return the statements that create the tables without their indexes."""
    prefix, jobs = names.prefix, names.table("jobs")
    checks = ",\n    ".join(f"CONSTRAINT {prefix}jobs_{name}_check CHECK ({rule})" for name, rule in CHECKS.items())
    return (
        f"""
CREATE TABLE {jobs} (
    id BIGINT GENERATED BY DEFAULT AS IDENTITY,
    task TEXT NOT NULL,
    queue TEXT DEFAULT 'default' NOT NULL,
    priority SMALLINT DEFAULT 0 NOT NULL,
    args JSONB NOT NULL,
    state TEXT DEFAULT 'scheduled' NOT NULL,
    run_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    attempt INTEGER DEFAULT 0 NOT NULL,
    max_attempts INTEGER DEFAULT 25 NOT NULL,
    current_run_id BIGINT,
    process_id UUID,
    gates TEXT[] COLLATE "C",
    ordered_by TEXT COLLATE "C",
    unique_key TEXT,
    unique_period TIMESTAMP WITH TIME ZONE,
    headers JSONB,
    on_failure JSONB,
    progress DOUBLE PRECISION,
    progress_message TEXT,
    cancel_requested_at TIMESTAMP WITH TIME ZONE,
    kill_requested BOOLEAN DEFAULT false NOT NULL,
    schedule_id BIGINT,
    scheduled_for TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE,
    finished_at TIMESTAMP WITH TIME ZONE,
    position BIGINT GENERATED BY DEFAULT AS IDENTITY,
    times_replaced INTEGER,
    times_returned INTEGER,
    waits_for BIGINT,
    waits_at INTEGER,
    batch_id BIGINT,
    if_failed TEXT,
    CONSTRAINT {prefix}jobs_pkey PRIMARY KEY (id),
    {checks}
)""",
        f"""
CREATE TABLE {names.table("runs")} (
    id BIGINT GENERATED BY DEFAULT AS IDENTITY,
    job_id BIGINT NOT NULL,
    attempt INTEGER NOT NULL,
    process_id UUID,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    finished_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    outcome TEXT NOT NULL,
    result JSONB,
    error_type TEXT,
    error TEXT,
    traceback TEXT,
    untold_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT {prefix}runs_pkey PRIMARY KEY (id),
    CONSTRAINT {prefix}runs_outcome_check
        CHECK ({_one_of("outcome", "succeeded", "failed", "cancelled", "retried", "snoozed", "lost")}),
    CONSTRAINT {prefix}runs_id_check CHECK ({_ID}),
    CONSTRAINT {prefix}runs_attempt_check CHECK (attempt >= 0),
    CONSTRAINT {prefix}runs_times_check CHECK ({_times("started_at", "finished_at", "untold_at")})
)""",
        f"""
CREATE TABLE {names.table("schedules")} (
    id BIGINT GENERATED BY DEFAULT AS IDENTITY,
    name TEXT NOT NULL,
    task TEXT NOT NULL,
    cron TEXT NOT NULL,
    timezone TEXT DEFAULT 'UTC' NOT NULL,
    args JSONB DEFAULT '{{}}' NOT NULL,
    queue TEXT DEFAULT 'default' NOT NULL,
    priority SMALLINT DEFAULT 0 NOT NULL,
    catch_up TEXT DEFAULT 'latest' NOT NULL,
    overlap TEXT DEFAULT 'allow' NOT NULL,
    jitter DOUBLE PRECISION DEFAULT 0 NOT NULL,
    enabled BOOLEAN DEFAULT true NOT NULL,
    disabled_reason TEXT,
    next_run_at TIMESTAMP WITH TIME ZONE,
    last_run_at TIMESTAMP WITH TIME ZONE,
    declared BOOLEAN DEFAULT false NOT NULL,
    declared_values JSONB,
    declared_at TIMESTAMP WITH TIME ZONE,
    retired_at TIMESTAMP WITH TIME ZONE,
    planned_rule TEXT,
    CONSTRAINT {prefix}schedules_pkey PRIMARY KEY (id),
    CONSTRAINT {prefix}schedules_name_key UNIQUE (name),
    CONSTRAINT {prefix}schedules_catch_up_check CHECK ({_one_of("catch_up", "skip", "latest", "all")}),
    CONSTRAINT {prefix}schedules_overlap_check CHECK ({_one_of("overlap", "allow", "skip")}),
    CONSTRAINT {prefix}schedules_id_check CHECK ({_ID}),
    CONSTRAINT {prefix}schedules_priority_check CHECK (priority BETWEEN -10 AND 10),
    CONSTRAINT {prefix}schedules_args_check CHECK ({_object("args")}),
    CONSTRAINT {prefix}schedules_declared_values_check CHECK ({_object("declared_values")}),
    CONSTRAINT {prefix}schedules_jitter_check CHECK (jitter BETWEEN 0 AND 86400),
    CONSTRAINT {prefix}schedules_times_check
        CHECK ({_times("next_run_at", "last_run_at", "declared_at", "retired_at")})
)""",
        f"""
CREATE TABLE {names.table("ticks")} (
    id BIGINT GENERATED BY DEFAULT AS IDENTITY,
    schedule_id BIGINT NOT NULL,
    scheduled_for TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    until TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    count INTEGER DEFAULT 1,
    outcome TEXT NOT NULL,
    job_id BIGINT,
    at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT {prefix}ticks_pkey PRIMARY KEY (id),
    CONSTRAINT {prefix}ticks_outcome_check CHECK ({_one_of("outcome", "enqueued", "skipped", "missed")}),
    CONSTRAINT {prefix}ticks_id_check CHECK ({_ID}),
    CONSTRAINT {prefix}ticks_count_check CHECK (count > 0),
    CONSTRAINT {prefix}ticks_times_check CHECK ({_times("scheduled_for", "until", "at")})
)""",
        f"""
CREATE TABLE {names.table("processes")} (
    id UUID DEFAULT gen_random_uuid() NOT NULL,
    kind TEXT DEFAULT 'worker' NOT NULL,
    host TEXT DEFAULT '' NOT NULL,
    pid INTEGER DEFAULT 0 NOT NULL,
    queues JSONB DEFAULT '{{}}' NOT NULL,
    tasks JSONB,
    set_aside JSONB DEFAULT '{{}}' NOT NULL,
    connections INTEGER DEFAULT 0 NOT NULL,
    version TEXT DEFAULT '' NOT NULL,
    clock_offset DOUBLE PRECISION,
    last_finished_at TIMESTAMP WITH TIME ZONE,
    stalled_since TIMESTAMP WITH TIME ZONE,
    lease DOUBLE PRECISION DEFAULT 30 NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    heartbeat_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT {prefix}processes_pkey PRIMARY KEY (id),
    CONSTRAINT {prefix}processes_queues_check CHECK ({_object("queues")}),
    CONSTRAINT {prefix}processes_tasks_check CHECK ({_object("tasks")}),
    CONSTRAINT {prefix}processes_set_aside_check CHECK ({_object("set_aside")}),
    CONSTRAINT {prefix}processes_clock_offset_check CHECK (clock_offset BETWEEN -1e10 AND 1e10),
    CONSTRAINT {prefix}processes_lease_check CHECK (lease > 0 AND lease <= 86400),
    CONSTRAINT {prefix}processes_times_check
        CHECK ({_times("started_at", "heartbeat_at", "last_finished_at", "stalled_since")})
)""",
        f"""
CREATE TABLE {names.table("queues")} (
    name TEXT NOT NULL,
    paused_at TIMESTAMP WITH TIME ZONE,
    paused_until TIMESTAMP WITH TIME ZONE,
    pause_reason TEXT,
    CONSTRAINT {prefix}queues_pkey PRIMARY KEY (name),
    CONSTRAINT {prefix}queues_times_check CHECK ({_times("paused_at", "paused_until")})
)""",
        f"""
CREATE TABLE {names.table("paused_tasks")} (
    name TEXT NOT NULL,
    paused_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    paused_until TIMESTAMP WITH TIME ZONE,
    pause_reason TEXT,
    CONSTRAINT {prefix}paused_tasks_pkey PRIMARY KEY (name),
    CONSTRAINT {prefix}paused_tasks_times_check CHECK ({_times("paused_at", "paused_until")})
)""",
        f"""
CREATE TABLE {names.table("limits")} (
    gate TEXT COLLATE "C" NOT NULL,
    running INTEGER,
    rate INTEGER,
    per DOUBLE PRECISION,
    hold BOOLEAN DEFAULT false NOT NULL,
    tasks TEXT[] DEFAULT '{{}}' NOT NULL,
    declared JSONB,
    set_at TIMESTAMP WITH TIME ZONE,
    changed_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT {prefix}limits_pkey PRIMARY KEY (gate),
    CONSTRAINT {prefix}limits_gate_check
        CHECK ((ascii(gate) = 37 OR left(gate, 1) IN ('#', '!', '@')) AND length(gate) BETWEEN 2 AND 500),
    CONSTRAINT {prefix}limits_numbers_check CHECK (running BETWEEN 0 AND 1000000 AND rate BETWEEN 0 AND 10000),
    CONSTRAINT {prefix}limits_per_check CHECK ((rate IS NULL) = (per IS NULL) AND per BETWEEN 1 AND 86400),
    CONSTRAINT {prefix}limits_kind_check CHECK (CASE WHEN ascii(gate) = 37 THEN running IS NULL ELSE rate IS NULL END),
    CONSTRAINT {prefix}limits_ordered_check CHECK (left(gate, 1) <> '!' OR running <= 1),
    CONSTRAINT {prefix}limits_declared_check CHECK ({_object("declared")}),
    CONSTRAINT {prefix}limits_times_check CHECK ({_times("set_at", "changed_at")})
)""",
        f"""
CREATE TABLE {names.table("starts")} (
    gate TEXT COLLATE "C" NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE NOT NULL,
    total BIGINT NOT NULL,
    count INTEGER NOT NULL,
    CONSTRAINT {prefix}starts_pkey PRIMARY KEY (gate, started_at, total),
    CONSTRAINT {prefix}starts_total_check
        CHECK (count BETWEEN 1 AND 1000000 AND total BETWEEN count AND 9000000000000000000),
    CONSTRAINT {prefix}starts_times_check CHECK ({_times("started_at")})
)""",
        f"""
CREATE TABLE {names.table("audit")} (
    id BIGINT GENERATED BY DEFAULT AS IDENTITY,
    at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    actor TEXT DEFAULT '' NOT NULL,
    action TEXT DEFAULT '' NOT NULL,
    subject TEXT DEFAULT '' NOT NULL,
    details JSONB DEFAULT '{{}}' NOT NULL,
    CONSTRAINT {prefix}audit_pkey PRIMARY KEY (id),
    CONSTRAINT {prefix}audit_id_check CHECK ({_ID}),
    CONSTRAINT {prefix}audit_details_check CHECK ({_object("details")}),
    CONSTRAINT {prefix}audit_times_check CHECK ({_times("at")})
)""",
        f"""
CREATE TABLE {names.table("batches")} (
    id BIGINT GENERATED BY DEFAULT AS IDENTITY,
    name TEXT DEFAULT '' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    closed_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT {prefix}batches_pkey PRIMARY KEY (id),
    CONSTRAINT {prefix}batches_id_check CHECK ({_ID}),
    CONSTRAINT {prefix}batches_times_check CHECK ({_times("created_at", "closed_at")})
)""",
        f"""
CREATE TABLE {names.table("edges")} (
    job_id BIGINT NOT NULL,
    place INTEGER NOT NULL,
    needs_id BIGINT,
    batch_id BIGINT,
    CONSTRAINT {prefix}edges_pkey PRIMARY KEY (job_id, place),
    CONSTRAINT {prefix}edges_place_check CHECK (place > 0),
    CONSTRAINT {prefix}edges_needs_id_check CHECK (needs_id < job_id AND num_nonnulls(needs_id, batch_id) < 2),
    CONSTRAINT {prefix}edges_job_id_fkey FOREIGN KEY (job_id) REFERENCES {jobs} (id) ON DELETE CASCADE,
    CONSTRAINT {prefix}edges_needs_id_fkey FOREIGN KEY (needs_id) REFERENCES {jobs} (id) DEFERRABLE INITIALLY DEFERRED
)""",
        f"""
CREATE TABLE {names.table("steps")} (
    job_id BIGINT NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    kind TEXT DEFAULT 'step' NOT NULL,
    number INTEGER NOT NULL,
    run_id BIGINT NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    finished_at TIMESTAMP WITH TIME ZONE,
    until TIMESTAMP WITH TIME ZONE,
    result JSONB,
    CONSTRAINT {prefix}steps_pkey PRIMARY KEY (job_id, name),
    CONSTRAINT {prefix}steps_kind_check CHECK ({_one_of("kind", "step", "sleep", "signal", "timeout")}),
    CONSTRAINT {prefix}steps_number_check CHECK (number BETWEEN 1 AND 1000),
    CONSTRAINT {prefix}steps_times_check CHECK ({_times("started_at", "finished_at", "until")}),
    CONSTRAINT {prefix}steps_job_id_fkey FOREIGN KEY (job_id) REFERENCES {jobs} (id) ON DELETE CASCADE
)""",
        f"""
CREATE TABLE {names.table("signals")} (
    id BIGINT GENERATED BY DEFAULT AS IDENTITY,
    job_id BIGINT NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    payload JSONB,
    sent_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT {prefix}signals_pkey PRIMARY KEY (id),
    CONSTRAINT {prefix}signals_id_check CHECK ({_ID}),
    CONSTRAINT {prefix}signals_times_check CHECK ({_times("sent_at")}),
    CONSTRAINT {prefix}signals_job_id_fkey FOREIGN KEY (job_id) REFERENCES {jobs} (id) ON DELETE CASCADE
)""",
    )
