"""Three databases with the tables of the shop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from copy import copy

import pytest
from sqlalchemy import Engine, create_engine

from sqla_jobs import Jobs
from sqla_jobs.testing.databases import Databases
from tests.sharding import shop

NAMES = ("eu", "us", "as")


@pytest.fixture
def urls(sqla_jobs_databases: Databases) -> Iterator[dict[str, str]]:
    """The URLs of the databases by name."""
    with ExitStack() as made:
        yield {name: made.enter_context(sqla_jobs_databases.new(shop.Base.metadata)) for name in NAMES}


@pytest.fixture
def engines(urls: dict[str, str]) -> Iterator[dict[str, Engine]]:
    """Engines on the databases by name."""
    made = {name: create_engine(url) for name, url in urls.items()}
    yield made
    for engine in made.values():
        engine.dispose()


@pytest.fixture
def bound(engines: dict[str, Engine]) -> Jobs[shop.TenantJob]:
    """The application, bound to the databases."""
    made = copy(shop.jobs)
    made.bind(engines)
    return made
