"""sqla_jobs

Revision ID: 0005
Revises: 0004, sqla_jobs_0003
Create Date: 2026-12-01 01:50:12.118502

"""
from alembic import op
import sqlalchemy as sa


# revision identifiers, used by Alembic.
revision = '0005'
down_revision = ('0004', 'sqla_jobs_0003')
branch_labels = None
depends_on = None


def upgrade():
    pass


def downgrade():
    pass
