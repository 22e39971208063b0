"""The application of tasks with steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqla_jobs import Jobs
from tests import step_shop


@pytest.fixture
def application() -> Jobs[Any]:
    step_shop.calls.clear()
    step_shop.begun.clear()
    step_shop.gate.clear()
    return step_shop.jobs


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    with Session(database) as session:
        yield session
