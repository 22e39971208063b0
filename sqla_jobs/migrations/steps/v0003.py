"""Lost runs that are counted apart from attempts; options of one job; fewer CHECKs and indexes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqla_jobs.migrations.names import Names
from sqla_jobs.migrations.online import alter, build_index, drop_indexes
from sqla_jobs.migrations.steps import v0002

if TYPE_CHECKING:
    from alembic.operations import Operations


def upgrade(op: Operations, names: Names) -> None:
    """Add the columns of version 3. Drop what a plain job does not need in the CHECKs and indexes of jobs."""
    dropped = {name: "" for name in _BEFORE if name not in _AFTER}
    alter(op, names, "jobs", add=_ADDED, checks=_AFTER | dropped)
    for index, definition in _NEW.items():
        build_index(op, names, index, definition)
    drop_indexes(op, names, *_OLD)


def downgrade(op: Operations, names: Names) -> None:
    """Restore the CHECKs and indexes of version 2, and drop the columns of version 3."""
    for index, definition in _OLD.items():
        build_index(op, names, index, definition)
    drop_indexes(op, names, *_NEW)
    alter(op, names, "jobs", drop=[one.split()[0] for one in _ADDED], checks=_BEFORE)


_ADDED = ("max_lost smallint", "timeout float8", "retention float8", "expires_at timestamptz")
_BEFORE = {name: rule for name, rule in v0002.CHECKS.items() if name not in ("state", "priority", "lease")}
"""The CHECKs of version 2 that this version changes or drops."""
_AFTER = {
    "args": "process_id IS NOT NULL OR finished_at IS NOT NULL OR jsonb_typeof(args) = 'object'",
    "attempts": "attempt >= 0 AND max_attempts > 0",
    "gates": "array_dims(gates) ~ '^.1:[1-6].$'",
}
_NEW = {
    "jobs_apart": "jobs (state, waits_for) WHERE waits_for IS NOT NULL OR retention IS NOT NULL",
    "jobs_holding": "jobs (current_run_id) WHERE state = 'running' AND gates IS NOT NULL",
    "jobs_order": "jobs (ordered_by, state, (started_at IS NULL), position) WHERE ordered_by IS NOT NULL",
    "jobs_state": (
        "jobs (state, finished_at) WHERE state = ANY ('{running,succeeded,failed,cancelled}') OR state LIKE 'running'"
    ),
}
_OLD = {
    name: v0002.INDEXES[name]
    for name in (
        "jobs_waits_for",
        *(f"jobs_holding{place}" for place in (1, 2, 3, 4, 5)),
        "jobs_ordered",
        "jobs_begun",
        "jobs_running",
        "jobs_ended",
        "jobs_failed",
        "jobs_retrying",
    )
}
