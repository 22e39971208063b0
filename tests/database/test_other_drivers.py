"""Databases and drivers that an application, or its tests, may have beside PostgreSQL and psycopg 3."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Engine, create_engine, inspect, make_url, select
from sqlalchemy.orm import Session

from sqla_jobs import ConfigurationError, migrations
from sqla_jobs.testing import drain
from tests.shop import Base, jobs, mark, write
from tests.shop import Effect as Row


@pytest.fixture
def sqlite() -> Iterator[Engine]:
    engine = create_engine("sqlite://")
    yield engine
    engine.dispose()


def test_the_tables_are_refused_by_another_database_before_any_is_made(sqlite: Engine) -> None:
    cause = r"sqlite\+pysqlite"
    with pytest.raises(ConfigurationError, match=cause):
        Base.metadata.create_all(sqlite)
    with sqlite.begin() as connection, pytest.raises(ConfigurationError, match=cause):
        migrations.upgrade(Operations(MigrationContext.configure(connection)), from_=0, to=2)
    assert inspect(sqlite).get_table_names() == []


def test_the_other_tables_of_the_application_can_be_made_there(sqlite: Engine) -> None:
    own = {table.name for table in jobs._models.tables.values()}
    others = [table for table in Base.metadata.sorted_tables if table.name not in own]
    Base.metadata.create_all(sqlite, tables=others)
    assert inspect(sqlite).get_table_names() == [Row.__tablename__]


@pytest.fixture
def psycopg2(database: Engine) -> Iterator[Engine]:
    """An engine as `postgresql://` means it before SQLAlchemy 2.1."""
    engine = create_engine(database.url.set(drivername="postgresql+psycopg2"))
    yield engine
    engine.dispose()


def test_jobs_are_enqueued_and_drained_through_psycopg2(psycopg2: Engine) -> None:
    with Session(psycopg2) as session:
        job = mark.options(unique_key="one", delay=60, queue="mail").enqueue(session, n=1)
        assert mark.options(unique_key="one").enqueue(session, n=2) is job
        write.enqueue_many(session, [{"n": 3}, {"n": 4}])
        session.commit()
        assert drain(session, jobs).runs == 2
        assert sorted(session.scalars(select(Row.n))) == [3, 4]
        assert jobs.cancel(session, job)
        session.commit()
        assert job.state == "cancelled"


def test_a_commit_through_psycopg2_wakes_the_workers_of_other_processes(psycopg2: Engine, database_url: str) -> None:
    address = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address, autocommit=True) as listening:
        listening.execute(f'LISTEN "{jobs._models.channel}"'.encode())
        with Session(psycopg2) as session:
            write.enqueue(session, n=1)
            session.commit()
        told = [notice.payload for notice in listening.notifies(timeout=20, stop_after=1)]
    assert told == ["default"]


def test_a_worker_is_refused_on_another_database_or_driver(psycopg2: Engine, sqlite: Engine) -> None:
    for engine in (psycopg2, sqlite):
        with pytest.raises(ConfigurationError, match=engine.driver):
            jobs.worker(bind=engine).drain()
