"""Fixtures for the applications `kit_shop` and `coroutine_shop`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sqla_jobs.testing.databases import Databases
from tests import coroutine_shop
from tests.testing import kit_shop


@pytest.fixture(scope="module")
def kit_url(sqla_jobs_databases: Databases) -> Iterator[str]:
    with sqla_jobs_databases.new(kit_shop.Base.metadata) as url:
        yield url


@pytest.fixture
def kit_session(kit_url: str) -> Iterator[Session]:
    """A session that is rolled back."""
    engine = create_engine(kit_url)
    with engine.connect() as connection, connection.begin() as transaction:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            yield session
        transaction.rollback()
    engine.dispose()


@pytest.fixture(scope="module")
def coroutine_url(sqla_jobs_databases: Databases) -> Iterator[str]:
    """The URL of a database with the tables of `coroutine_shop`."""
    with sqla_jobs_databases.new(coroutine_shop.Base.metadata) as url:
        yield url
