"""sqla_jobs: version 2 of its tables."""

from alembic import op

from sqla_jobs.migrations import branch

revision = "sqla_jobs_0002"
down_revision = None
branch_labels: tuple[str, ...] = ("sqla_jobs",)
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    branch.upgrade(op, from_=0, to=2)


def downgrade() -> None:
    """Drop the tables."""
    branch.downgrade(op, from_=2, to=0)
