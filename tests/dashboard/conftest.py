"""A database with the tables of tests.dashboard_shop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqla_jobs import Jobs
from tests import dashboard_shop
from tests.dashboard.visitor import Visitor


@pytest.fixture
def application() -> Jobs[Any]:
    return dashboard_shop.jobs


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    """One whose rows can be read after a commit without asking the database."""
    with Session(database, expire_on_commit=False) as session:
        yield session


@pytest.fixture
def visitor(database: Engine) -> Visitor:
    """A visitor with the role of an operator."""
    return Visitor(dashboard_shop.create_app())
