"""Tasks annotated with a class of session of its own, in the session of a test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlmodel
from sqlalchemy import Engine

from sqla_jobs import Jobs
from sqla_jobs.testing import drain, run_job
from tests.sqlmodel_shop import Order, jobs, settle


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


@pytest.fixture
def own(database: Engine) -> Iterator[sqlmodel.Session]:
    with sqlmodel.Session(database) as session:
        yield session


def test_run_job_and_drain_give_the_session_of_the_test(own: sqlmodel.Session) -> None:
    own.add(order := Order())
    assert run_job(own, settle)(order=order) == [order.id]
    settle.enqueue(own, order=order)
    assert drain(own, jobs).runs == 1
