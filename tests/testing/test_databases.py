"""Databases for tests: quick copies of a template, dropped afterwards."""

from __future__ import annotations

import pytest
from sqlalchemy import MetaData, create_engine, event, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, registry

from sqla_jobs import Jobs
from sqla_jobs.testing.databases import Databases


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


def test_tables_are_made_once_and_then_copied(sqla_jobs_databases: Databases) -> None:
    metadata, made = MetaData(), list[MetaData]()
    Jobs(registry(metadata=metadata))

    def note(target: MetaData, *_: object, **__: object) -> None:
        made.append(target)

    event.listen(metadata, "after_create", note)
    for _ in range(3):
        with sqla_jobs_databases.new(metadata):
            pass
    assert made == [metadata]
