"""Runs the revisions that the package brings, on the database that DATABASE_URL names."""

import os

from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase

from sqla_jobs import Jobs


class Base(DeclarativeBase):
    pass


Jobs(Base)
engine = create_engine(os.environ["DATABASE_URL"])

if context.is_offline_mode():
    context.configure(url=engine.url, target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=Base.metadata, compare_server_default=True)
        with context.begin_transaction():
            context.run_migrations()
