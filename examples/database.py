"""A database for the examples: a new PostgreSQL server, or a new schema in the database that DATABASE_URL names."""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager

from sqlalchemy import create_engine, make_url
from sqlalchemy.schema import CreateSchema, DropSchema

from sqla_jobs.postgres import local_postgres


@contextmanager
def demo_database() -> Generator[str]:
    """Yield the URL of an empty database or schema, which is dropped after the block."""
    if given := os.environ.get("DATABASE_URL"):
        with _schema(given) as url:
            yield url
    else:
        with local_postgres(durable=True) as url:
            yield url


@contextmanager
def _schema(given: str) -> Generator[str]:
    url = make_url(given)
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    name = f"sqla_jobs_demo_{secrets.token_hex(4)}"
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(CreateSchema(name))
    try:
        options = f"{url.query.get('options', '')} -csearch_path={name}".strip()
        yield url.update_query_dict({"options": options}).render_as_string(hide_password=False)
    finally:
        with engine.begin() as connection:
            connection.execute(DropSchema(name, cascade=True))
        engine.dispose()
