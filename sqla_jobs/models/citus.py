"""Citus, which no table of the jobs may belong to: it refuses the statements with which workers lock rows."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.models.mapping import Models
from sqla_jobs.rules.wording import page

TWO_PHASES = "two_phases"
"""The name, without the prefix, of the triggers, of their function, and of the table that the function updates."""
FORCED_BY = ("jobs", "steps", "signals")
"""The tables with the triggers: these are written to in the same transactions as an application's tables."""
_IS_THERE = sa.text("SELECT to_regclass('pg_dist_partition') IS NOT NULL")
_MANAGED = sa.text("""
    SELECT name FROM unnest(CAST(:names AS text[])) AS name JOIN pg_dist_partition ON logicalrelid = to_regclass(name)
""")


def is_citus(connection: sa.Connection) -> bool:
    """Return whether Citus is installed in this database."""
    return bool(connection.scalar(_IS_THERE))


def managed(connection: sa.Connection, models: Models[Any]) -> list[str]:
    """Return the names of the jobs' tables that Citus manages, of whatever kind; none without Citus."""
    names = [connection.dialect.identifier_preparer.format_table(table) for table in models.tables.values()]
    return sorted(connection.scalars(_MANAGED, {"names": names})) if is_citus(connection) else []


def check_unmanaged(connection: sa.Connection, models: Models[Any]) -> None:
    """Raise `ConfigurationError` if Citus manages a table. Check this before the version, whose comment Citus drops."""
    if found := managed(connection, models):
        raise ConfigurationError(
            f"tables of the jobs are Citus's: {', '.join(found)}. It refuses the statements of workers there, so jobs "
            f"could be enqueued, and would never run ({page('tenants')}): make plain tables in another schema, "
            "Jobs(…, schema=…), which is not distributed, without foreign keys to Citus's tables, and copy the rows"
        )
