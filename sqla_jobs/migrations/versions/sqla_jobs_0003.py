"""sqla_jobs: version 3 of its tables."""

from alembic import op

from sqla_jobs.migrations import branch

revision = "sqla_jobs_0003"
down_revision = "sqla_jobs_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns of version 3."""
    branch.upgrade(op, from_=2, to=3)


def downgrade() -> None:
    """Drop the columns of version 3."""
    branch.downgrade(op, from_=3, to=2)
