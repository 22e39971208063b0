"""sqla_jobs: version 2 of its tables."""

from alembic import op

from sqla_jobs.migrations import branch

revision = "sqla_jobs_0002"
down_revision = "sqla_jobs_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Shorten the CHECKs, and add the columns of version 2."""
    branch.upgrade(op, from_=1, to=2)


def downgrade() -> None:
    """Restore the CHECKs of version 1, and drop the columns of version 2."""
    branch.downgrade(op, from_=2, to=1)
