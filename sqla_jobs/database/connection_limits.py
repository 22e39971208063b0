"""The number of connections that the server allows, and a warning if there are too few."""

from __future__ import annotations

import logging
from typing import LiteralString

import sqlalchemy as sa

from sqla_jobs.database.refusals import cause_of, reason

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

LIMIT: LiteralString = """
    SELECT count(*), current_setting('max_connections')::int
      - current_setting('superuser_reserved_connections')::int
      - coalesce(current_setting('reserved_connections', true), '0')::int
    FROM pg_stat_activity WHERE backend_type = 'client backend'
"""
"""A query for two numbers of connections: those in use in all databases, and those that ordinary roles may open."""


_NOT_ALLOWED = "42501"


def warn_of_few_connections(engine: sa.Engine, wanted: int) -> None:
    """Log a warning if the server allows too few connections for a worker that uses up to `wanted` more."""
    try:
        with engine.connect() as connection:
            used, most = connection.exec_driver_sql(LIMIT).one()
    except Exception as error:
        if getattr(cause_of(error), "sqlstate", None) != _NOT_ALLOWED:
            raise
        log.info("cannot read the server's limit of connections: %s", reason(error))
        return
    if used + wanted > most:
        log.warning(
            "this worker may use %d connections at once, and the server allows %d, of which %d are in use: "
            "raise max_connections, lower --processes or the concurrency, or put PgBouncer in front of the server",
            wanted,
            most,
            used,
        )
