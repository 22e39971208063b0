"""A worker for tests of workflows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from sqla_jobs.worker import Worker
from tests import shop
from tests.shop import jobs


@pytest.fixture
def worker(database: Engine) -> Iterator[Worker]:
    """A worker of this process."""
    shop.gate.clear()
    with jobs.worker(concurrency=4, bind=database, clock=False) as worker:
        yield worker
        shop.gate.set()
