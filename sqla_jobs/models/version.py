"""The version of the tables, both the one that this code creates and the one in a database.

`create_all` and migrations store the version in the jobs table's comment. Code of version N runs on tables of versions
N and N + 1, so that the tables can be upgraded before the workers, while the workers are running.
"""

from __future__ import annotations

import re
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import OID

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.rules.wording import page

LATEST = 3
"""The version of the tables that this release creates."""
RELEASES: dict[int, str] = {2: "0.2", 3: "0.3"}
"""The releases, by the version of the tables that each release creates."""
HELP = (
    "`sqla-jobs migrate`, or `alembic upgrade heads` where Alembic has them, with a revision that calls "
    f"migrations.upgrade if they are in your own history ({page('migrations')})"
)


def comment_of(version: int) -> str:
    """Return the comment for a jobs table of this version."""
    return f"sqla_jobs schema {version}"


def found_version(connection: sa.Connection, jobs: sa.Table) -> int | None:
    """Return the tables' version in this database: 0 if there are no tables, None if the comment does not state it."""
    name: Any = connection.dialect.identifier_preparer.format_table(jobs)
    oid = sa.func.to_regclass(name)
    is_there, comment = connection.execute(sa.select(oid.is_not(None), sa.func.obj_description(oid, "pg_class"))).one()
    if not is_there:
        return 0
    return version_in(comment)


def releases_on(version: int) -> str:
    """Return the releases whose code runs on tables of this version, as text such as `0.2 and 0.3`."""
    return " and ".join(RELEASES[one] for one in (version - 1, version) if one in RELEASES)


def outdated(version: int) -> str:
    """Return the error message about tables whose version is too old for this code."""
    return (
        f"the tables are of version {version}, and this sqla_jobs works on {LATEST} and {LATEST + 1}: "
        f"upgrade them with {HELP}"
    )


def version_in(comment: str | None) -> int | None:
    """Return the version in a jobs table's comment, or None."""
    found = re.search(r"\bsqla_jobs schema ([1-9]\d*)\b", comment or "")
    return int(found[1]) if found else None


def schema_of(connection: sa.Connection, jobs: sa.Table) -> str | None:
    """Return the schema in which this connection finds the jobs table. None if there is no such table."""
    name: Any = connection.dialect.identifier_preparer.format_table(jobs)
    schema: str | None = connection.scalar(_SCHEMA, {"name": name})
    return schema


def identity_of(connection: sa.Connection, jobs: sa.Table) -> tuple[Any, ...]:
    """Return what tells this jobs table from those of all other databases and servers, until its server restarts."""
    name: Any = connection.dialect.identifier_preparer.format_table(jobs)
    table = sa.cast(sa.func.to_regclass(name), OID)
    return tuple(
        connection.execute(sa.select(sa.func.pg_postmaster_start_time(), sa.func.current_database(), table)).one()
    )


_SCHEMA = sa.text(
    "SELECT nspname FROM pg_class JOIN pg_namespace AS space ON space.oid = relnamespace "
    "WHERE pg_class.oid = to_regclass(:name)"
)


def check_version(connection: sa.Connection, jobs: sa.Table) -> None:
    """Raise `ConfigurationError` if this code cannot work with this database's tables."""
    found = found_version(connection, jobs)
    if found == 0:
        raise ConfigurationError(
            f"there is no table {jobs.fullname} in this database: make the tables with {HELP}, "
            "or with metadata.create_all(engine)"
        )
    if found is None:
        raise ConfigurationError(
            f"the comment of table {jobs.fullname} does not say its version, such as {comment_of(LATEST)!r}; a restore "
            "without comments loses it: `sqla-jobs migrate --check` compares the tables, and `migrate` writes it again"
        )
    if found < LATEST:
        raise ConfigurationError(outdated(found))
    if found > LATEST + 1:
        raise ConfigurationError(
            f"the tables are of version {found}, and this sqla_jobs works on {LATEST} and {LATEST + 1}: "
            "install a newer one, pip install --upgrade sqla-jobs"
        )
