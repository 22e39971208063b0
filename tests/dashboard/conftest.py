"""A database with the tables of tests.dashboard_shop, and templates that are compiled once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from jinja2 import BytecodeCache, Environment
from jinja2.bccache import Bucket
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqla_jobs import Jobs
from sqla_jobs.dashboard import site
from tests import dashboard_shop


class Compiled(BytecodeCache):
    """The code of each template, once compiled."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if bucket.key in self._kept:
            bucket.bytecode_from_string(self._kept[bucket.key])

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._kept[bucket.key] = bucket.bytecode_to_string()


@pytest.fixture(scope="package", autouse=True)
def compiled_once() -> Iterator[None]:
    """Each application has its own environment, which compiles all templates anew: half the time of a page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "Environment", partial(Environment, bytecode_cache=Compiled()))
        yield


@pytest.fixture
def application() -> Jobs[Any]:
    return dashboard_shop.jobs


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    """One whose rows can be read after a commit without asking the database."""
    with Session(database, expire_on_commit=False) as session:
        yield session
