"""The functions that the revisions in `versions/` call.

These functions find the tables in the Alembic environment's metadata.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING

import sqlalchemy as sa

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.migrations import running
from sqla_jobs.models.mapping import MARK

if TYPE_CHECKING:
    from alembic.operations import Operations


def upgrade(op: Operations | ModuleType, *, from_: int, to: int) -> None:
    """Call `migrations.upgrade` for the only `Jobs` in the environment's metadata. Raises `ConfigurationError`."""
    jobs = _jobs_of(op)
    running.upgrade(op, from_=from_, to=to, schema=jobs.schema, prefix=jobs.info[MARK])


def downgrade(op: Operations | ModuleType, *, from_: int, to: int) -> None:
    """Call `migrations.downgrade` for the only `Jobs` in the environment's metadata. Raises `ConfigurationError`."""
    jobs = _jobs_of(op)
    running.downgrade(op, from_=from_, to=to, schema=jobs.schema, prefix=jobs.info[MARK])


def _jobs_of(op: Operations | ModuleType) -> sa.Table:
    target = op.get_context().opts.get("target_metadata")
    several: Iterable[sa.MetaData] = [target] if isinstance(target, sa.MetaData) else target or ()
    found = [table for metadata in several for table in metadata.tables.values() if MARK in table.info]
    if not found:
        raise ConfigurationError(
            "the target_metadata of this Alembic environment holds no Jobs: in env.py import the module that makes it, "
            "and set target_metadata to the metadata of its base"
        )
    if len(found) > 1:
        names = ", ".join(table.fullname for table in found)
        raise ConfigurationError(
            f"the target_metadata holds several Jobs ({names}), and the branch sqla_jobs serves one: call "
            "sqla_jobs.migrations.upgrade for each in a revision of your own"
        )
    return found[0]
