"""Lost runs that are counted apart from attempts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqla_jobs.migrations.names import Names
from sqla_jobs.migrations.online import alter

if TYPE_CHECKING:
    from alembic.operations import Operations


def upgrade(op: Operations, names: Names) -> None:
    """Add the columns of version 3, with their CHECKs."""
    alter(op, names, "jobs", add=["max_lost smallint"], checks={"max_lost": "max_lost > 0"})


def downgrade(op: Operations, names: Names) -> None:
    """Drop the columns of version 3, and with them their CHECKs."""
    alter(op, names, "jobs", drop=["max_lost"])
