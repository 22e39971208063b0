"""A revision of the application's own Alembic history, as docs/migrations.md shows it."""

from __future__ import annotations

from alembic import op
from alembic.operations import Operations

from sqla_jobs import migrations


def upgrade() -> None:
    migrations.upgrade(op, from_=0, to=3, schema=None, prefix="sqla_")


def downgrade() -> None:
    migrations.downgrade(op, from_=3, to=0, schema=None, prefix="sqla_")


def upgrade_elsewhere(operations: Operations) -> None:
    migrations.upgrade(operations, from_=0, to=3)
