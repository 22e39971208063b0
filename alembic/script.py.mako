"""sqla_jobs: ${message}."""

from alembic import op

from sqla_jobs.migrations import branch
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    """What it does."""
    ${upgrades if upgrades else "branch.upgrade(op, from_=…, to=…)"}


def downgrade() -> None:
    """What it takes back."""
    ${downgrades if downgrades else "branch.downgrade(op, from_=…, to=…)"}
