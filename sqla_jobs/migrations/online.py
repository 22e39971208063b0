"""Changes to tables that are in use.

Each change first commits what its step has done so far. So a failed step is run again from its start, and everything
before the change must be repeatable. If the same migration creates the tables, the change is part of that migration's
transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from sqla_jobs.migrations.names import Names

if TYPE_CHECKING:
    from alembic.operations import Operations

_PATIENT = """
DO $$
BEGIN
    SET LOCAL lock_timeout = '50ms';
    FOR try IN 1..600 LOOP
        BEGIN
            {statement};
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            PERFORM pg_sleep(0.5 + random());
        END;
    END LOOP;
    RAISE lock_not_available USING MESSAGE = 'for ten minutes another transaction has held a lock on {table}',
        HINT = 'End it (pg_stat_activity shows it), or wait until it ends. Then run the migration again.';
END $$"""
"""A statement that takes a lock briefly.

It waits for the lock at most 50 ms at a time, because all later users of the table wait behind it.
"""


def build_index(op: Operations, names: Names, index: str, on: str, *, unique: bool = False) -> None:
    """Build an index on a table that may be large, without blocking the table's writers.

    `index` is the index's name without the prefix. `on` is the table's noun and the columns, such as `"runs
    (finished_at)"`. An invalid index left by a failed build is dropped first.
    """
    noun, _, definition = on.partition(" ")
    kind, online = "UNIQUE INDEX" if unique else "INDEX", "" if names.are_new else "CONCURRENTLY"
    with _outside_transaction(op, names):
        op.execute(f"DROP INDEX {online} IF EXISTS {names.table(index)}")
        op.execute(f"CREATE {kind} {online} {names.prefix}{index} ON {names.table(noun)} {definition}")


def replace_unique_index(op: Operations, names: Names, index: str, on: str) -> None:
    """Replace a unique index by one with another predicate, without a moment in which neither is there."""
    old, new = names.table(index), f"{index}_new"
    build_index(op, names, new, on, unique=True)
    rename = f"DROP INDEX IF EXISTS {old}; ALTER INDEX {names.table(new)} RENAME TO {names.prefix}{index}"
    with _outside_transaction(op, names):
        op.execute(_PATIENT.format(table=names.table(on.partition(" ")[0]), statement=rename))


def add_foreign_keys(op: Operations, names: Names, noun: str, keys: Mapping[str, str]) -> None:
    """Add foreign keys to a table without rows. `keys` gives, for each column, what it references."""
    constraints = {f"{names.prefix}{noun}_{column}_fkey": (column, references) for column, references in keys.items()}
    dropped = [f"DROP CONSTRAINT IF EXISTS {name}" for name in constraints]
    added = [
        f"ADD CONSTRAINT {name} FOREIGN KEY ({column}) {references}"
        for name, (column, references) in constraints.items()
    ]
    _alter(op, names, noun, ", ".join([*dropped, *added]))


def drop_table(op: Operations, names: Names, noun: str) -> None:
    """Drop a table, with its foreign keys to other tables."""
    table = names.table(noun)
    with _outside_transaction(op, names):
        op.execute(_PATIENT.format(table=table, statement=f"DROP TABLE IF EXISTS {table}"))


def add_column(op: Operations, names: Names, noun: str, column: str) -> None:
    """Add a column that is nullable or has a constant default.

    `column` gives the new column's name, type and options.
    """
    _alter(op, names, noun, f"ADD COLUMN IF NOT EXISTS {column}")


def drop_column(op: Operations, names: Names, noun: str, column: str) -> None:
    """Drop a column."""
    _alter(op, names, noun, f"DROP COLUMN IF EXISTS {column}")


def replace_checks(op: Operations, names: Names, noun: str, rules: Mapping[str, str]) -> None:
    """Replace a table's CHECKs with these rules, without blocking the table's writers during validation.

    `noun` is the table's name without the prefix. A rule's name is its constraint's name without the table and
    `_check`.
    """
    constraints = {f"{names.prefix}{noun}_{name}_check": rule for name, rule in rules.items()}
    dropped = [f"DROP CONSTRAINT IF EXISTS {name}" for name in constraints]
    added = [f"ADD CONSTRAINT {name} CHECK ({rule}) NOT VALID" for name, rule in constraints.items()]
    validated = [f"VALIDATE CONSTRAINT {name}" for name in constraints]
    _alter(op, names, noun, ", ".join([*dropped, *added]))
    with _outside_transaction(op, names):
        op.execute(f"ALTER TABLE {names.table(noun)} {', '.join(validated)}")


def _alter(op: Operations, names: Names, noun: str, change: str) -> None:
    table = names.table(noun)
    with _outside_transaction(op, names):
        op.execute(_PATIENT.format(table=table, statement=f"ALTER TABLE {table} {change}"))


def _outside_transaction(op: Operations, names: Names) -> AbstractContextManager[None]:
    return nullcontext() if names.are_new else op.get_context().autocommit_block()
