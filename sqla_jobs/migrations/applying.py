"""Upgrades of databases without an Alembic history."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, TextIO

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.migrations.comparison import compare
from sqla_jobs.migrations.running import STEPS, upgrade
from sqla_jobs.migrations.two_phases import citus
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.version import LATEST, comment_of, found_version
from sqla_jobs.rules.wording import page

_LOCK = sa.text("SELECT pg_try_advisory_xact_lock(hashtextextended(:name, 0))")
_LOCKED_AGAIN = 0.2
"""Seconds after which a locked upgrade is tried again."""
_NO_LIMIT = sa.text("SET LOCAL idle_in_transaction_session_timeout = 0")
_HISTORIES = sa.text("""
    SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relname = 'alembic_version' AND c.relkind IN ('r', 'p') ORDER BY 1
""")


def migrate(engine: sa.Engine, models: Models[Any]) -> list[str]:
    """Upgrade the tables to the latest version. Return a line for each step.

    If several callers run simultaneously, only one of them upgrades the tables, while the others wait. Raises
    `ConfigurationError` if the database has an Alembic history.
    """
    with _alone(engine, models), engine.connect().execution_options(isolation_level="READ COMMITTED") as connection:
        context = MigrationContext.configure(connection)
        with context.begin_transaction():
            table = models.tables["jobs"]
            found = found_version(connection, table)
            if found is None:
                return [_write_version(connection, models)]
            if found >= LATEST:
                return []
            _refuse_histories(connection)
            upgrade(Operations(context), from_=found, to=LATEST, schema=table.schema, prefix=models.prefix)
            return _lines_of(found)


def force_two_phases(engine: sa.Engine, models: Models[Any]) -> None:
    """Let Citus commit in two phases, as `migrations.citus` does."""
    with _alone(engine, models), engine.connect().execution_options(isolation_level="READ COMMITTED") as connection:
        context = MigrationContext.configure(connection)
        with context.begin_transaction():
            citus(Operations(context), schema=models.tables["jobs"].schema, prefix=models.prefix)


@contextmanager
def _alone(engine: sa.Engine, models: Models[Any]) -> Generator[None]:
    """Wait until no other caller upgrades these tables, and keep other callers from starting.

    The lock belongs to a transaction of its own, since an upgrade consists of many transactions. The build of an index
    waits for all snapshots. Therefore no caller waits for the lock inside the server. For the same reason, the last
    statement of the lock's transaction is not a SELECT: that would keep its snapshot.
    """
    with engine.connect().execution_options(isolation_level="READ COMMITTED") as connection:
        while True:
            with connection.begin():
                if connection.scalar(_LOCK, {"name": f"migrate {models.channel}"}):
                    connection.execute(_NO_LIMIT)
                    yield
                    return
            time.sleep(_LOCKED_AGAIN)


def print_migration(engine: sa.Engine | None, models: Models[Any], output: TextIO) -> None:
    """Write the SQL that `migrate` would run on this database.

    Without an engine, assume that there are no tables yet.
    """
    table = models.tables["jobs"]
    found: int | None = 0
    if engine is not None:
        with engine.connect() as connection:
            found = found_version(connection, table)
    if found is None:
        raise ConfigurationError(
            f"the comment of table {table.fullname} does not say its version: run `sqla-jobs migrate`, "
            "which writes it where the tables fit"
        )
    if found >= LATEST:
        return
    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "output_buffer": output, "literal_binds": True}
    )
    with context.begin_transaction():
        upgrade(Operations(context), from_=found, to=LATEST, schema=table.schema, prefix=models.prefix)


def _lines_of(found: int) -> list[str]:
    return [f"version {version}: {(step.__doc__ or '').strip()}" for version, step in STEPS.items() if version > found]


def _write_version(connection: sa.Connection, models: Models[Any]) -> str:
    """Write the missing version comment if the tables match otherwise. Raises `ConfigurationError` if they do not."""
    table = models.tables["jobs"]
    others = [one for one in compare(connection, models) if one.what != "version"]
    if others:
        raise ConfigurationError(
            f"the comment of table {table.fullname} does not say its version, and the tables are not those of version "
            f"{LATEST} ({others[0]}): `sqla-jobs migrate --check` names all differences; once it is known which "
            f"version they are of, say so: COMMENT ON TABLE {table.fullname} IS 'sqla_jobs schema …'"
        )
    name: Any = connection.dialect.identifier_preparer.format_table(table)
    connection.execute(sa.text(f"COMMENT ON TABLE {name} IS '{comment_of(LATEST)}'"))
    return f"version {LATEST}: the tables fit, and their comment says so again"


def histories(connection: sa.Connection) -> list[str]:
    """Return this database's schemas that contain an Alembic history."""
    return [*connection.scalars(_HISTORIES)]


def _refuse_histories(connection: sa.Connection) -> None:
    if schemas := histories(connection):
        raise ConfigurationError(
            f"this database has an Alembic history (table {schemas[0]}.alembic_version), which would not know of what "
            "is done here: take the library's branch, or call migrations.upgrade in a revision of your own "
            f"({page('migrations')}), then `alembic upgrade heads`. Where the history is another application's: "
            "`sqla-jobs migrate --sql | psql …`"
        )
