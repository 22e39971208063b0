"""sqla_jobs

Revision ID: 0002
Revises: 0001, sqla_jobs_0003
Create Date: 2026-11-25 12:51:34.715274

"""
from alembic import op
import sqlalchemy as sa


# revision identifiers, used by Alembic.
revision = '0002'
down_revision = ('0001', 'sqla_jobs_0003')
branch_labels = None
depends_on = None


def upgrade():
    pass


def downgrade():
    pass
