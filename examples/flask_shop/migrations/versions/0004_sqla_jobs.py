"""sqla_jobs

Revision ID: 0004
Revises: 0003, sqla_jobs_0002
Create Date: 2026-11-28 11:30:12.118502

"""
from alembic import op
import sqlalchemy as sa


# revision identifiers, used by Alembic.
revision = '0004'
down_revision = ('0003', 'sqla_jobs_0002')
branch_labels = None
depends_on = None


def upgrade():
    pass


def downgrade():
    pass
