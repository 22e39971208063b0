"""The application of coroutine tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqla_jobs import Jobs
from tests import coroutine_shop


@pytest.fixture
def application() -> Jobs[Any]:
    return coroutine_shop.jobs


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    """One whose rows can be read after a commit without asking the database."""
    coroutine_shop.seen.clear()
    with Session(database, expire_on_commit=False) as session:
        yield session
