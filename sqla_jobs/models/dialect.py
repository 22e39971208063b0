"""The databases that can hold the tables."""

from __future__ import annotations

import sqlalchemy as sa

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.rules.wording import page


def check_dialect(dialect: sa.Dialect) -> None:
    """Raise `ConfigurationError` if the database is not PostgreSQL, before a table is created in it."""
    if dialect.name != "postgresql":
        raise ConfigurationError(
            f"the tables of sqla_jobs cannot be made in {dialect.name}+{dialect.driver}: they need PostgreSQL. For "
            "tests, sqla_jobs.postgres.local_postgres() starts a server; to do without the jobs there, leave their "
            f"tables out: {page('testing')}#sqlite-and-other-drivers"
        )
