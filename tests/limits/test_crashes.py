"""A server that crashes right after a claim or a spend, and whose default is not to wait for the disk."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.orm import Session

from sqla_jobs.postgres import LocalServer
from tests import limited_shop as shop
from tests.limited_shop import Base, jobs
from tests.limits.attempts import enqueue
from tests.limits.claims import Claims, as_worker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer() as server:
        yield server


@pytest.fixture
def database(server: LocalServer) -> Iterator[Engine]:
    engine = create_engine(server.url, pool_pre_ping=True)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert connection.scalar(text("SHOW synchronous_commit")) == "off"
        connection.execute(text("ALTER SYSTEM SET wal_writer_delay = '10s'"))  # which would write it soon anyway
        connection.execute(text("SELECT pg_reload_conf()"))
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    jobs.bind(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def claims(database: Engine) -> Iterator[Claims]:
    with as_worker(database, jobs) as claims:
        yield claims


def on_disk(engine: Engine) -> None:
    """What was committed before survives a crash."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CHECKPOINT"))


def crash(server: LocalServer, *engines: Engine) -> None:
    server.crash()
    server.start()
    for engine in engines:
        engine.dispose()


def test_what_is_committed_and_not_flushed_is_undone(server: LocalServer, database: Engine) -> None:
    """So the tests below show something."""
    enqueue(database, shop.pair, [{"n": 1}])
    on_disk(database)
    with database.begin() as connection:
        connection.execute(text("UPDATE sqla_jobs SET task = 'other'"))
    crash(server, database)
    with database.connect() as connection:
        assert connection.scalar(text("SELECT task FROM sqla_jobs")) == "pair"


def test_no_job_begins_under_a_claim_that_a_crash_undoes(server: LocalServer, database: Engine, claims: Claims) -> None:
    """F4, F5: the claim's commit is not flushed, and then another one on the same connection is."""
    enqueue(database, shop.pair, [{"n": 1}])
    on_disk(database)
    (claimed,) = claims.limited()
    crash(server, database, claims.engine)
    with Session(database) as session:
        job = session.scalars(select(jobs.Job)).one()
        assert (job.state, job.current_run_id) == ("running", claimed.run_id)


def test_the_starts_of_a_rate_are_known_after_a_crash(server: LocalServer, database: Engine, claims: Claims) -> None:
    enqueue(database, shop.rated, [{"n": n} for n in range(8)])
    with Session(database) as session:
        jobs.set_limit(session, shop.rated, rate=5, per=3600)
        session.commit()
    on_disk(database)
    assert len(claims.limited(3)) == 3
    crash(server, database, claims.engine)
    assert len(claims.limited()) == 2


def test_what_was_spent_is_spent_after_a_crash(server: LocalServer, database: Engine, claims: Claims) -> None:
    with Session(database) as session:
        jobs.set_limit(session, "stripe", rate=5, per=3600)
        session.commit()
    on_disk(database)
    assert jobs.spend("stripe", 4)
    crash(server, database, claims.engine)
    assert not jobs.spend("stripe", 2)
