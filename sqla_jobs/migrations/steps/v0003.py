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
    """Restore the CHECKs and indexes of version 2, and drop the columns of version 3.

    A downgrade to version 1 that was interrupted has perhaps dropped the column `if_failed`, and drops it again.
    """
    for index, definition in _OLD.items():
        build_index(op, names, index, definition)
    drop_indexes(op, names, *_NEW)
    alter(op, names, "jobs", add=["if_failed text"], drop=[one.split()[0] for one in _ADDED], checks=_BEFORE)


_ADDED = ("max_lost smallint", "timeout float8", "retention float8", "expires_at timestamptz")
_BEFORE = {rule.name: rule.after for rule in v0002.RULES["jobs"] if rule.name not in ("state", "priority")} | {
    "if_failed": "if_failed = ANY ('{cancel,run,hold}')",
    "position": "position > 0",
}
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
    "jobs_waits_for": "jobs (state, waits_for) WHERE waits_for IS NOT NULL",
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
    "jobs_running": "jobs (process_id) WHERE state = 'running'",
    "jobs_ended": "jobs (state, finished_at) WHERE state IN ('succeeded', 'failed', 'cancelled')",
    "jobs_failed": "jobs (task, finished_at) WHERE state = 'failed'",
    "jobs_retrying": "jobs (task, run_at) WHERE state IN ('scheduled', 'queued') AND started_at IS NOT NULL",
}
