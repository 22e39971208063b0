"""The databases of tests: quick copies of a template, dropped afterwards."""

from __future__ import annotations

import os
import time

import pytest
from sqlalchemy import MetaData, create_engine, inspect, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, registry

from sqla_jobs import ConfigurationError, Jobs
from sqla_jobs.postgres import memory
from sqla_jobs.testing.databases import Databases
from tests import shop


def test_a_database_has_the_tables_in_their_schemas_and_is_dropped(sqla_jobs_databases: Databases) -> None:
    metadata = MetaData()
    jobs = Jobs(registry(metadata=metadata), schema="Odd schema")
    for _ in range(2):
        with sqla_jobs_databases.new(metadata) as url:
            engine = create_engine(url)
            with Session(engine) as session:
                session.add(jobs.Job(task="any", args={}))
                session.commit()
                assert len(session.scalars(select(jobs.Job)).all()) == 1
            engine.dispose()
        with pytest.raises(OperationalError, match="does not exist"):
            engine.connect()
        engine.dispose()


def test_a_database_without_metadata_is_empty(sqla_jobs_databases: Databases) -> None:
    with sqla_jobs_databases.new() as url:
        engine = create_engine(url)
        assert inspect(engine).get_table_names() == []
        engine.dispose()


def test_what_is_no_metadata_is_refused(sqla_jobs_databases: Databases) -> None:
    with pytest.raises(ConfigurationError, match=r"sqla_jobs_metadata return Base\.metadata"):
        sqla_jobs_databases.new(shop.Base).__enter__()  # type: ignore[arg-type]


def test_a_database_from_a_template_takes_less_than_30_ms(sqla_jobs_databases: Databases) -> None:
    def seconds() -> float:
        began = time.perf_counter()
        with sqla_jobs_databases.new(shop.Base.metadata):
            return time.perf_counter() - began

    seconds()  # makes the template
    is_in_memory = memory() is not None and "DATABASE_URL" not in os.environ
    assert min(seconds() for _ in range(20)) < (
        0.03 if is_in_memory else 0.3
    )  # the fastest: others use the machine too
