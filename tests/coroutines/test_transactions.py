"""The transactions of coroutine tasks: what ends with a run, and what its database refuses."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, event, insert, make_url, select, text
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import Session

from sqla_jobs.testing.databases import new_database
from tests import coroutine_shop as shop
from tests.coroutine_shop import Effect, jobs, seen
from tests.coroutines.rows import asynchronous, effects, outcomes, running
from tests.helpers import wait_until

REFUSED = ["InvalidRequestError"] * 4
DRIVERS = pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])


@DRIVERS
def test_what_an_attempt_without_a_lease_wrote_is_not_committed_by_the_next_user_of_its_connection(
    session: Session, database: Engine, driver: str
) -> None:
    jobs.bind(database, async_bind=asynchronous(database, driver, pool_size=1, max_overflow=0))
    one = shop.write.enqueue(session, n=1, seconds=0.6)
    session.commit()
    with jobs.worker(clock=False) as worker:
        wait_until(lambda: running(worker))
        session.execute(
            text("UPDATE sqla_jobs SET current_run_id = nextval('sqla_runs_id_seq') WHERE args->>'n' = '1'")
        )
        other = shop.write.enqueue(session, n=2)
        session.commit()
        wait_until(lambda: outcomes(session, other.id) == ["succeeded"])
    assert outcomes(session, one.id) == []
    assert effects(session) == [2]


@pytest.fixture
def elsewhere(server_url: str) -> Iterator[Engine]:
    """An engine of another database, which has a table `elsewhere`."""
    with new_database(server_url) as url:
        engine = create_engine(url)
        ELSEWHERE.metadata.create_all(engine)
        yield engine
        engine.dispose()


ELSEWHERE = Table("elsewhere", MetaData(), Column("n", Integer))
LEASED = jobs.Job.current_run_id.is_distinct_from(-jobs.Job.id)
"""Not those that the test has taken away from their worker."""


@pytest.mark.slow
@DRIVERS
@pytest.mark.parametrize("fault", ["its lease is lost", "the other database is lost"])
def test_a_commit_in_two_databases_that_fails_leaves_nothing_in_a_connection(
    session: Session, database: Engine, elsewhere: Engine, driver: str, fault: str
) -> None:
    """In every second job; the next one has the same connections."""

    class InTwo(Session):
        pass

    def also(session: Session, flushed: Any) -> None:
        (n,) = (one.n for one in session.new if isinstance(one, Effect))
        session.execute(insert(ELSEWHERE).values(n=n))
        if n % 2 == 0:
            return
        with database.connect() as connection:
            if fault == "its lease is lost":
                statement = "UPDATE sqla_jobs SET current_run_id = -id WHERE args->>'n' = :n"
                connection.execute(text(statement), {"n": str(n)})
            else:
                pid = session.connection(bind_arguments={"clause": ELSEWHERE}).scalar(text("SELECT pg_backend_pid()"))
                connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
            connection.commit()

    event.listen(InTwo, "after_flush", also)
    shop.note.options(max_attempts=1).enqueue_many(session, ({"n": n} for n in range(12)))
    session.commit()

    def are_over() -> bool:
        left = session.scalars(select(jobs.Job.id).where(jobs.Job.state.in_(["queued", "running"]), LEASED)).all()
        session.rollback()
        return not left

    async def serve() -> None:
        own, other = (asynchronous(one, driver, pool_size=1, max_overflow=0) for one in (database, elsewhere))
        jobs.bind(database, async_bind=async_sessionmaker(own, binds={ELSEWHERE: other}, sync_session_class=InTwo))
        async with jobs.worker({"default": 1}, clock=False) as worker:
            await asyncio.to_thread(wait_until, lambda: are_over() and not running(worker))
        await own.dispose()
        await other.dispose()

    asyncio.run(serve())
    assert effects(session) == list(range(0, 12, 2))
    with elsewhere.connect() as connection:
        assert sorted(connection.scalars(select(ELSEWHERE.c.n))) == list(range(0, 12, 2))


@DRIVERS
def test_a_session_is_of_no_use_after_its_run(session: Session, database: Engine, driver: str) -> None:
    jobs.bind(database, async_bind=asynchronous(database, driver))
    one = shop.keep.enqueue(session, n=1)
    session.commit()
    with jobs.worker(clock=False):
        wait_until(lambda: outcomes(session, one.id) == ["succeeded"])
        shop.misuse_what_was_kept.enqueue(session, n=2)
        session.commit()
        wait_until(lambda: len(seen) == 5)
    assert seen[1:] == REFUSED
    assert effects(session) == [1]


@pytest.mark.slow
@DRIVERS
def test_an_abandoned_coroutine_neither_reads_nor_writes(session: Session, database: Engine, driver: str) -> None:
    jobs.bind(database, async_bind=asynchronous(database, driver))
    one = shop.deaf_misuse.enqueue(session, n=1, seconds=2.5)
    session.commit()
    with jobs.worker(kill_after=0.3, clock=False):
        wait_until(lambda: outcomes(session, one.id) == ["failed"])
        assert seen == []
        wait_until(lambda: seen)
    assert seen == REFUSED
    assert effects(session) == []


@pytest.mark.slow
@pytest.mark.parametrize("cause", ["refused", "not accepted", "too slow"])
def test_a_database_that_cannot_be_connected_to_charges_no_attempt(
    session: Session, database: Engine, server_url: str, caplog: pytest.LogCaptureFixture, cause: str
) -> None:
    """asyncpg's errors on connecting are those of Python, or its own: SQLAlchemy does not wrap them."""
    real = database.url.set(drivername="postgresql")
    wrong: dict[str, Any] = {}

    async def connect() -> Any:
        return await asyncpg.connect(real.render_as_string(hide_password=False), **wrong)

    jobs.bind(database, async_bind=asynchronous(database, "asyncpg", async_creator=connect))
    admin = create_engine(make_url(server_url), isolation_level="AUTOCOMMIT")
    with socket.create_server(("127.0.0.1", 0)) as silent, jobs.worker(clock=False), admin.connect() as there:
        port = silent.getsockname()[1]
        if cause == "refused":
            silent.close()
            wrong |= {"host": "127.0.0.1", "port": port}
        elif cause == "too slow":
            wrong |= {"host": "127.0.0.1", "port": port, "timeout": 0.2}
        else:
            there.execute(text(f"ALTER DATABASE {real.database} ALLOW_CONNECTIONS false"))
        one = shop.write.enqueue(session, n=1)
        session.commit()
        wait_until(lambda: "get no transaction" in caplog.text)
        wrong.clear()
        there.execute(text(f"ALTER DATABASE {real.database} ALLOW_CONNECTIONS true"))
        wait_until(lambda: outcomes(session, one.id) == ["succeeded"])
    admin.dispose()
    assert session.get_one(jobs.Job, one.id, populate_existing=True).attempt == 1


@pytest.mark.slow
def test_the_engine_that_a_worker_makes_is_closed_also_in_the_loop_of_the_application(
    session: Session, database: Engine
) -> None:
    one = shop.write.enqueue(session, n=1)
    session.commit()
    others = "datname = current_database() AND application_name NOT LIKE 'sqla-jobs%' AND pid <> pg_backend_pid()"

    async def serve() -> None:
        async with jobs.worker(clock=False):
            await asyncio.to_thread(wait_until, lambda: outcomes(session, one.id) == ["succeeded"])
        session.close()
        database.dispose()
        count = text(f"SELECT count(*) FROM pg_stat_activity WHERE {others}")
        await asyncio.to_thread(wait_until, lambda: session.scalar(count) == 0, timeout=5)

    asyncio.run(serve())
