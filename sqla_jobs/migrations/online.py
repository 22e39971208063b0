"""Indexes built while everything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqla_jobs.migrations.names import Names

if TYPE_CHECKING:
    from alembic.operations import Operations


def build_index(op: Operations, names: Names, index: str, on: str, *, unique: bool = False) -> None:
    """Build an index on a table that may be large, without locking out its writers.

    `index` is its name without the prefix, `on` the table's noun and what follows, such as
    `"runs (finished_at)"`. It commits what the step did before, so a step that fails here is run again
    from its start, and what stands before stands repetition. An index that a failed build left is dropped first.
    """
    noun, _, definition = on.partition(" ")
    kind = "UNIQUE INDEX" if unique else "INDEX"
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {names.table(index)}")
        op.execute(f"CREATE {kind} CONCURRENTLY {names.prefix}{index} ON {names.table(noun)} {definition}")
