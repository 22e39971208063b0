"""How the transaction of a task ends: its writes, its end and COMMIT."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, event, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from sqla_jobs import Jobs, RunEvent
from sqla_jobs.postgres import LocalServer
from sqla_jobs.testing.databases import new_database
from tests import shop
from tests.counting import attempts_and_runs, states
from tests.helpers import wait_until
from tests.shop import Effect, jobs

CONNECTIONS = 2


@pytest.fixture
def app(database: Engine) -> Iterator[Engine]:
    """The application's engine, of which each connection is used again and again."""
    app = create_engine(database.url, pool_size=CONNECTIONS, max_overflow=0)
    yield app
    app.dispose()


def run(app: Engine, task: Any, *arguments: dict[str, Any], bind: Any = None) -> list[list[tuple[str, str | None]]]:
    """The outcome and the error of each run of each of these jobs, drained once."""
    with Session(app) as session:
        task.enqueue_many(session, arguments)
        session.commit()
        jobs.worker(bind=bind or app, concurrency=CONNECTIONS).drain()
        return [
            [(run.outcome, run.error) for run in job.runs]
            for job in session.scalars(select(jobs.Job).order_by(jobs.Job.id))
        ]


def effects(app: Engine) -> dict[int, str]:
    with Session(app) as session:
        rows = session.execute(select(Effect.n, Effect.kind).order_by(Effect.n)).all()
    assert len(dict(rows)) == len(rows)
    return dict(rows)


WENT_WELL = [("succeeded", None)]


def test_what_the_application_writes_before_each_commit_is_part_of_it(app: Engine) -> None:
    factory = sessionmaker(app)

    def also(session: Session) -> None:
        session.add(Effect(n=100, kind="before commit"))

    event.listen(factory, "before_commit", also)
    assert run(app, shop.write, {"n": 1}, bind=factory) == [WENT_WELL]
    assert effects(app) == {1: "transactional", 100: "before commit"}


def test_nothing_that_is_written_before_a_commit_stays_where_the_lease_was_lost(
    app: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    factory, is_taken = sessionmaker(app), threading.Event()

    def take_away(session: Session) -> None:
        session.add(Effect(n=100, kind="before commit"))
        with app.begin() as other:
            other.execute(text(f"UPDATE {jobs.Job.__tablename__} SET current_run_id = 0 WHERE state = 'running'"))
        is_taken.set()

    event.listen(factory, "before_commit", take_away)
    with Session(app) as session:
        job = shop.write.options(max_attempts=1).enqueue(session, n=1)
        session.commit()
        with jobs.worker(bind=factory, concurrency=1, clock=False):
            assert is_taken.wait(20)
        session.refresh(job)
        assert (job.state, job.runs) == ("running", [])
    assert effects(app) == {}
    levels = {one.levelname for one in caplog.records if one.name.startswith("sqla_jobs")} - {"INFO"}
    assert levels == {"WARNING"}
    assert app.pool.checkedout() == 0  # type: ignore[attr-defined]
    with app.connect() as first, app.connect() as second:  # and both are as good as new
        assert [first.scalar(text("SELECT 1")), second.scalar(text("SELECT 1"))] == [1, 1]


def test_a_commit_that_the_server_refuses_is_the_error_of_the_attempt(app: Engine) -> None:
    with app.begin() as connection:
        connection.execute(text("ALTER TABLE effects ADD CONSTRAINT once UNIQUE (n) DEFERRABLE INITIALLY DEFERRED"))
        connection.execute(text("INSERT INTO effects (n, kind) VALUES (7, 'first')"))
    first, second = run(app, shop.write, {"n": 7}, {"n": 8})
    assert second == WENT_WELL
    assert [outcome for outcome, _ in first] == ["retried"]
    assert "once" in str(first[0][1])
    assert effects(app) == {7: "first", 8: "transactional"}


@pytest.mark.slow
def test_a_task_that_rolls_back_or_commits_by_itself_ends_in_a_transaction_of_its_own(app: Engine) -> None:
    assert run(app, shop.commit_and_roll_back, {"n": 1}) == [WENT_WELL]
    assert effects(app) == {1: "kept"}


def test_a_transaction_in_two_phases(app: Engine) -> None:
    with app.connect() as connection:
        can = connection.scalar(text("SELECT current_setting('max_prepared_transactions')")) != "0"
    found = run(app, shop.write, {"n": 1}, bind=sessionmaker(app, twophase=True))
    if can:
        assert found == [WENT_WELL]
        assert effects(app) == {1: "transactional"}
    else:
        assert "max_prepared_transactions" in str(found)
        assert effects(app) == {}


class Listened(DeclarativeBase):
    pass


listened = Jobs(Listened)


@listened.task
def note(session: Session, word: str) -> None: ...


@pytest.mark.parametrize("twophase", [False, True])
def test_an_error_after_the_commit_is_logged_as_one_and_the_job_has_succeeded(
    app: Engine, caplog: pytest.LogCaptureFixture, twophase: bool
) -> None:
    with app.connect() as connection:
        if twophase and connection.scalar(text("SHOW max_prepared_transactions")) == "0":
            pytest.skip("the server has no prepared transactions")
    Listened.metadata.create_all(app)
    factory, told = sessionmaker(app, twophase=twophase), list[str]()

    def fail(session: Session) -> None:
        if session.info:  # that of a run
            raise ConnectionError("the search index is gone")

    event.listen(factory, "after_commit", fail)

    @listened.on("succeeded", "failed", "retried")
    def hear(heard: RunEvent) -> None:
        told.append(heard.name)

    with Session(app) as session:
        note.options(max_attempts=1).enqueue(session, word="a")
        session.commit()
    with listened.worker(bind=factory, concurrency=1, clock=False):
        wait_until(lambda: told != [])
    assert told == ["succeeded"]
    assert states(app) == {"succeeded": 1}
    (line,) = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
    assert "raised after the commit" in line
    assert "the search index is gone" in line


@pytest.mark.slow
def test_an_attempt_without_a_lease_commits_in_no_other_database_either(app: Engine, server_url: str) -> None:
    """A session that writes to two databases commits one after the other, in no order."""
    with new_database(server_url) as url:
        elsewhere = create_engine(url, pool_size=CONNECTIONS)
        metadata = MetaData()
        other = Table("elsewhere", metadata, Column("n", Integer))
        metadata.create_all(elsewhere)
        factory, seen = sessionmaker(app, binds={other: elsewhere}), list[int]()

        def also(session: Session, flushed: Any) -> None:
            (n,) = (one.n for one in session.new if isinstance(one, Effect))
            session.execute(insert(other).values(n=n))
            if n % 2:
                with app.begin() as connection:
                    jobs_of_n = text(f"UPDATE {jobs.Job.__tablename__} SET current_run_id = -id WHERE args->>'n' = :n")
                    connection.execute(jobs_of_n, {"n": str(n)})
            seen.append(n)

        event.listen(factory, "after_flush", also)
        with Session(app) as session:
            shop.write.enqueue_many(session, ({"n": n} for n in range(20)))
            session.commit()
        with jobs.worker(bind=factory, concurrency=1, clock=False):
            wait_until(lambda: len(seen) == 20)
        with elsewhere.connect() as connection:
            assert sorted(connection.scalars(select(other.c.n))) == list(range(0, 20, 2))
        elsewhere.dispose()
    assert len(effects(app)) == 10


@pytest.mark.slow
def test_an_end_that_the_task_itself_keeps_from_being_stored_is_charged_and_told(app: Engine) -> None:
    """A trigger that returns NULL does so, or row level security."""
    with app.begin() as connection:
        connection.execute(
            text(
                """
                CREATE FUNCTION hide() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                    IF NEW.state = 'succeeded' THEN RETURN NULL; END IF;
                    RETURN NEW;
                END $$;
                CREATE TRIGGER hide BEFORE UPDATE ON sqla_jobs FOR EACH ROW EXECUTE FUNCTION hide();
                """
            )
        )
    ((outcome, _),) = run(app, shop.write, {"n": 1})[0]
    assert outcome == "retried"
    assert effects(app) == {}
    with Session(app) as session:
        job = session.scalars(select(jobs.Job)).one()
        assert (job.state, job.attempt) == ("scheduled", 1)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["after_flush", "before_commit"])
def test_what_another_database_does_not_commit_makes_the_job_fail(moment: str, app: Engine, server_url: str) -> None:
    """Its connection is cut right before its COMMIT, in every second job."""
    with new_database(server_url) as url:
        elsewhere = create_engine(url, pool_size=CONNECTIONS)
        other = Table("elsewhere", MetaData(), Column("n", Integer))
        other.metadata.create_all(elsewhere)
        factory = sessionmaker(app, binds={other: elsewhere})

        def also(session: Session, *_: object) -> None:
            n = session.info["n"]
            session.execute(insert(other).values(n=n))
            if n % 2:
                pid = session.connection(bind_arguments={"clause": other}).scalar(text("SELECT pg_backend_pid()"))
                with app.connect() as connection:
                    connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

        def note(session: Session, *_: object) -> None:
            session.info["n"] = next(one.n for one in session.new if isinstance(one, Effect))

        event.listen(factory, "after_flush", note)
        event.listen(factory, moment, also)
        with Session(app) as session:
            shop.write.enqueue_many(session, ({"n": n} for n in range(20)))
            session.commit()
        jobs.worker(bind=factory, concurrency=1).drain()
        with elsewhere.connect() as connection:
            assert sorted(connection.scalars(select(other.c.n))) == list(range(0, 20, 2))
        elsewhere.dispose()
    with Session(app) as session:
        ended = select(jobs.Job.args["n"].as_integer()).where(jobs.Job.state == "succeeded")
        assert sorted(session.scalars(ended)) == list(range(0, 20, 2))
    assert sorted(effects(app)) == list(range(0, 20, 2))


@pytest.mark.slow
def test_an_end_is_on_the_disk_also_where_the_database_does_not_wait_for_it() -> None:
    """Else a crash of the server brings the job back, of which its worker knows nothing any more."""
    with LocalServer(durable=True) as server:
        engine = create_engine(server.url)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ALTER SYSTEM SET wal_writer_delay = '10s'"))
            connection.execute(text("ALTER SYSTEM SET synchronous_commit = 'off'"))
        server.restart()
        engine.dispose()
        shop.Base.metadata.create_all(engine)
        jobs.bind(engine)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            assert connection.scalar(text("SHOW synchronous_commit")) == "off"
            connection.execute(text("CHECKPOINT"))
        with jobs.worker(heartbeat=0.5, lease=30, clock=False):
            with Session(engine) as session:
                shop.write.options(max_attempts=1).enqueue(session, n=1)
                session.commit()
            wait_until(lambda: states(engine) == {"succeeded": 1})
            server.crash()
            server.start()
            engine.dispose()
            assert states(engine) == {"succeeded": 1}
            assert attempts_and_runs(engine) == (1, 1)
        engine.dispose()
