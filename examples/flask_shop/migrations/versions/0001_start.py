"""start

Revision ID: 0001
Revises: 
Create Date: 2026-11-25 12:51:30.436877

"""
from alembic import op
import sqlalchemy as sa


# revision identifiers, used by Alembic.
revision = '0001'
down_revision = None
branch_labels = None
depends_on = None


def upgrade():
    pass


def downgrade():
    pass
