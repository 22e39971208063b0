"""One database for the tests of a module that roll back, or delete, what they do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, create_engine, text

from sqla_jobs.testing.databases import Databases
from tests import shop


@pytest.fixture(scope="module")
def shared(sqla_jobs_databases: Databases) -> Iterator[Engine]:
    """An engine on a database with the tables of the shop, which the tests of one module share."""
    with sqla_jobs_databases.new(shop.Base.metadata) as url:
        engine = create_engine(url)
        yield engine
        engine.dispose()


@pytest.fixture
def connection(shared: Engine) -> Iterator[Connection]:
    """A connection that rolls back in the end, and waits for no lock longer than a second."""
    with shared.connect() as connection:
        connection.execute(text("SET lock_timeout = '1s'"))
        connection.commit()
        yield connection
        connection.rollback()
        connection.execute(text("RESET lock_timeout"))
        connection.commit()


@pytest.fixture
def emptied(shared: Engine, connection: Connection) -> Iterator[None]:
    """In the end the tables are empty again, for tests that commit."""
    yield
    connection.rollback()
    with shared.begin() as cleaning:
        cleaning.execute(text("SET LOCAL lock_timeout = '5s'"))
        cleaning.execute(text("TRUNCATE sqla_processes, sqla_jobs, sqla_runs, sqla_limits CASCADE"))
