"""Changes to tables that are in use.

Each change first commits the statements of its step so far. A failed step is run again from its start, so all
statements before the change must be repeatable. If the same migration creates the tables, the change is part of that
migration's transaction.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy.exc import InvalidRequestError

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.migrations.names import Names

if TYPE_CHECKING:
    from alembic.operations import Operations

_PATIENT = """
DO $$
BEGIN
    FOR try IN 1..600 LOOP
        SET LOCAL lock_timeout = '50ms';
        SET LOCAL synchronous_commit = off;
        BEGIN
            {statement};
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
        COMMIT;
        PERFORM pg_sleep(0.5 + random());
    END LOOP;
    RAISE lock_not_available USING MESSAGE = 'for ten minutes another transaction has held a lock on {table}',
        HINT = 'End it (pg_stat_activity shows it), or wait until it ends. Then run the migration again.';
END $$"""
"""A block that executes a statement under a briefly held lock.

The block waits for the lock at most 50 ms at a time, because all later users of the table wait behind it. Its commit
does not wait for the disk, so the lock is released sooner. The later commit that stores the version does wait. Each try
is a transaction of its own, since a long transaction would delay the build of an index elsewhere.
"""


def alter(
    op: Operations,
    names: Names,
    noun: str,
    *,
    add: Iterable[str] = (),
    drop: Iterable[str] = (),
    checks: Mapping[str, str] | None = None,
) -> None:
    """Add columns, replace CHECKs, and drop columns, without blocking the table's writers for long.

    - `noun`: the table's name without the prefix.
    - `add`: each new column's name and type, and its default if that is constant. The column must not have a CHECK: the
      server would scan all rows under the lock.
    - `checks`: the new rules. A rule's name is its constraint's name without the table and `_check`. The rows are
      validated while other sessions write. An empty rule drops the constraint.
    """
    constraints = {f"{names.prefix}{noun}_{name}_check": rule for name, rule in (checks or {}).items()}
    changes = [
        *(f"DROP CONSTRAINT IF EXISTS {name}" for name in constraints),
        *(f"DROP COLUMN IF EXISTS {column}" for column in drop),
        *(f"ADD COLUMN IF NOT EXISTS {column}" for column in add),
        *(f"ADD CONSTRAINT {name} CHECK ({rule}) NOT VALID" for name, rule in constraints.items() if rule),
    ]
    table = names.table(noun)
    _patiently(op, names, noun, f"ALTER TABLE {table} {', '.join(changes)}")
    if validated := [f"VALIDATE CONSTRAINT {name}" for name, rule in constraints.items() if rule]:
        with _outside_transaction(op, names):
            op.execute(f"ALTER TABLE {table} {', '.join(validated)}")


def build_index(op: Operations, names: Names, index: str, on: str) -> None:
    """Build an index on a table that may be large, without blocking the table's writers.

    `index` is the index's name without the prefix. `on` is the table's noun and the columns, such as `"runs
    (finished_at)"`. An invalid index left by a failed build is dropped first.
    """
    noun, _, definition = on.partition(" ")
    online = "" if names.are_new else "CONCURRENTLY"
    with _outside_transaction(op, names):
        op.execute(f"DROP INDEX {online} IF EXISTS {names.table(index)}")
        op.execute(f"CREATE INDEX {online} {names.prefix}{index} ON {names.table(noun)} {definition}")


def drop_indexes(op: Operations, names: Names, *indexes: str) -> None:
    """Drop indexes of a table that may be large, without blocking its users. The names are without the prefix."""
    online = "" if names.are_new else "CONCURRENTLY "
    with _outside_transaction(op, names):
        for index in indexes:
            op.execute(f"DROP INDEX {online}IF EXISTS {names.table(index)}")


def create_trigger(op: Operations, names: Names, noun: str, trigger: str) -> None:
    """Create or replace a trigger of the table with this noun. `trigger` is its name and what follows."""
    _patiently(op, names, noun, f"CREATE OR REPLACE TRIGGER {trigger}")


def commit(op: Operations, names: Names) -> None:
    """Commit the earlier statements."""
    with _outside_transaction(op, names):
        pass


def _patiently(op: Operations, names: Names, noun: str, statement: str) -> None:
    with _outside_transaction(op, names):
        op.execute(_PATIENT.format(table=quoted(names.table(noun)), statement=statement))


def quoted(name: str) -> str:
    """Return the name for use inside an SQL string literal."""
    return name.replace("'", "''")


@contextmanager
def _outside_transaction(op: Operations, names: Names) -> Generator[None]:
    """Commit the earlier statements, and execute each statement of the block in its own transaction.

    If a statement loses its connection or is interrupted, Alembic raises an error of its own at the end of the block.
    This function then raises the statement's error instead.
    """
    if names.are_new:
        yield
        return
    cause: BaseException | None = None
    try:
        with op.get_context().autocommit_block():
            try:
                yield
            except BaseException as error:
                cause = error
                raise
    except AssertionError as error:  # raised by Alembic for a transaction that it has not begun
        raise ConfigurationError(
            "this migration commits several times, but its connection was in a transaction before Alembic began one: "
            "where env.py executes statements before context.configure(connection=connection), call "
            "connection.commit() after them"
        ) from error
    except InvalidRequestError:
        if cause is None:
            raise
        raise cause from None
