"""An idle worker hears of new jobs at once. Its poll is a minute here: only a message can be in time."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Engine, create_engine, event, func, make_url, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqla_jobs.database import notify as wakeup
from sqla_jobs.queries.claim import Claim
from sqla_jobs.queries.due import Promote
from sqla_jobs.queries.statement import Statement
from sqla_jobs.tasks.enqueue import EnqueueOptions
from tests import shop
from tests.conftest import ROOT
from tests.helpers import wait_until
from tests.proxy import Proxy
from tests.shop import Effect, jobs

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def worker(engine: Engine) -> Iterator[Engine]:
    with jobs.worker(clock=False):
        wait_until(lambda: is_listening(engine))
        yield engine


LISTENING = "FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"


def is_listening(engine: Engine) -> bool:
    with engine.connect() as connection:
        return bool(connection.scalar(text(f"SELECT 1 {LISTENING}")))


def effects(engine: Engine) -> set[int]:
    with Session(engine) as session:
        return set(session.scalars(select(Effect.n)))


PROGRAM = """
import sys
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from tests import shop
with Session(create_engine(sys.argv[1])) as session:
    shop.write.enqueue(session, n=7)
    session.commit()
"""


@pytest.mark.slow
def test_a_program_that_ends_right_after_its_commit_wakes_it(worker: Engine, database_url: str) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM, database_url], cwd=ROOT, check=True, timeout=30)
    wait_until(lambda: effects(worker) == {7})


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_commit_of_an_async_session_wakes_it(worker: Engine, database_url: str, driver: str) -> None:
    async def enqueue() -> None:
        engine = create_async_engine(make_url(database_url).set(drivername=f"postgresql+{driver}"))
        async with AsyncSession(engine) as session:
            await session.run_sync(lambda plain: shop.write.enqueue(plain, n=8))
            await session.commit()
        await engine.dispose()

    asyncio.run(enqueue())
    wait_until(lambda: effects(worker) == {8})


FORKING = """
import os, sys
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from tests import shop
engine = create_engine(sys.argv[1])
with Session(engine) as session:  # the parent has thread and connection already when it forks
    shop.write.enqueue(session, n=1)
    session.commit()
child = os.fork()
if child == 0:
    engine.dispose(close=False)
    with Session(engine) as session:
        shop.write.enqueue(session, n=2)
        session.commit()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
with Session(engine) as session:
    shop.write.enqueue(session, n=3)
    session.commit()
"""


@pytest.mark.slow
def test_parent_and_child_of_a_fork_both_wake_it(worker: Engine, database_url: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKING, database_url]
    subprocess.run(command, cwd=ROOT, check=True, timeout=30, env=os.environ)
    wait_until(lambda: effects(worker) == {1, 2, 3})


@pytest.mark.slow
def test_nothing_is_said_before_the_outermost_commit_or_after_a_rollback(engine: Engine, database_url: str) -> None:
    dsn = database_url.replace("+psycopg", "")
    with psycopg.connect(dsn, autocommit=True) as listener, Session(engine) as session:
        listener.execute(sql.SQL("LISTEN {}").format(sql.Identifier(jobs._models.channel)))
        for _ in range(2):
            shop.write.enqueue(session, n=1)
            with session.begin_nested():
                shop.write.options(queue="mail").enqueue(session, n=2)
            assert list(listener.notifies(timeout=0.2)) == []
            session.rollback()
        with engine.connect() as connection, connection.begin():
            with Session(connection, join_transaction_mode="create_savepoint") as joined:
                shop.write.enqueue(joined, n=3)
                joined.commit()
            assert list(listener.notifies(timeout=0.2)) == []
        shop.write.options(queue="mail").enqueue(session, n=4)
        session.commit()
        assert [notify.payload for notify in listener.notifies(timeout=10, stop_after=1)] == ["mail"]


@pytest.mark.slow
def test_it_listens_again_after_its_connection_was_cut(worker: Engine, database_url: str) -> None:
    with worker.connect() as connection:
        connection.execute(text(f"SELECT pg_terminate_backend(pid) {LISTENING}"))
    wait_until(lambda: is_listening(worker))
    subprocess.run([sys.executable, "-c", PROGRAM, database_url], cwd=ROOT, check=True, timeout=30)
    wait_until(lambda: effects(worker) == {7})


@pytest.mark.slow
@pytest.mark.parametrize(("look", "options"), [(Claim, {}), (Promote, {"delay": 0.2})])
def test_what_is_told_in_the_middle_of_a_look_is_looked_for_at_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, look: type[Statement], options: EnqueueOptions
) -> None:
    """Else it would wait for the next poll: that look did not see it."""
    plain, is_armed = look.__call__, threading.Event()
    app = create_engine(engine.url)
    app.connect().close()
    event.listen(app, "do_connect", no_token)  # no message is sent, which would tell again after the look

    def and_one_comes_late(self: Statement, *args: Any, **given: Any) -> Any:
        found = plain(self, *args, **given)
        if is_armed.is_set():
            is_armed.clear()
            with Session(app) as session:
                shop.write.options(**options).enqueue(session, n=1)
                session.commit()
        return found

    monkeypatch.setattr(look, "__call__", and_one_comes_late)
    with jobs.worker(clock=False), engine.connect() as connection:
        wait_until(lambda: is_listening(engine))
        is_armed.set()
        connection.execute(select(func.pg_notify(jobs._models.channel, "")))
        connection.commit()
        wait_until(lambda: effects(engine) == {1})
    app.dispose()


Sent = Callable[[], list[str]]


@pytest.fixture
def sent(database_url: str) -> Iterator[Sent]:
    """Gives the queues that messages have told of so far."""
    told: list[str] = []
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as listener:
        listener.execute(sql.SQL("LISTEN {}").format(sql.Identifier(jobs._models.channel)))

        def so_far() -> list[str]:
            told.extend(notify.payload for notify in listener.notifies(timeout=0.01))
            return told

        yield so_far


def commit_in(engine: Engine, *queues: str) -> None:
    for queue in queues:
        with Session(engine) as session:
            shop.write.options(queue=queue).enqueue(session, n=1)
            session.commit()


def test_a_session_that_is_bound_to_a_connection_tells_of_what_it_commits(engine: Engine, sent: Sent) -> None:
    with engine.connect() as connection:
        for queue in ("first", "second"):
            with Session(connection) as session:
                shop.write.options(queue=queue).enqueue(session, n=1)
                session.commit()
                wait_until(lambda: sent()[-1:] == [queue])  # noqa: B023
        with connection.begin(), Session(connection, join_transaction_mode="rollback_only") as session:
            shop.write.options(queue="of somebody else").enqueue(session, n=1)
            session.commit()
        with Session(connection, join_transaction_mode="control_fully") as session:
            connection.begin()
            shop.write.options(queue="third").enqueue(session, n=1)
            session.commit()
        wait_until(lambda: sent()[-1:] == ["third"])
    assert sent() == ["first", "second", "third"]


def test_one_commit_may_tell_of_thousands_of_queues(engine: Engine, sent: Sent) -> None:
    """Such as of one for each tenant. A SELECT of PostgreSQL has at most 1,664 columns."""
    with Session(engine) as session:
        for n in range(2000):
            shop.write.options(queue=f"tenant{n}").enqueue(session, n=n)
        session.commit()
    wait_until(lambda: len(sent()) == 2000)


def no_token(*_: object) -> None:
    raise RuntimeError("no token")


@pytest.mark.slow
def test_where_no_connection_can_be_made_commits_go_on_and_ask_for_one_rarely(
    engine: Engine, sent: Sent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sqla_jobs.database.notify._IDLE", 6.0)
    attempts: list[object] = []
    engine.connect().close()  # the only one that there will be
    others = threading.enumerate()

    def at_work() -> bool:
        return any(one.name == "sqla_jobs-wakeup" for one in threading.enumerate() if one not in others)

    event.listen(engine, "do_connect", lambda *args: attempts.append(args))
    event.listen(engine, "do_connect", no_token)
    commit_in(engine, *"abcdefgh")
    wait_until(lambda: attempts and not at_work())
    commit_in(engine, *"abcdefgh")
    assert not at_work()
    assert len(attempts) == 1
    event.remove(engine, "do_connect", no_token)

    def is_told_of() -> bool:
        commit_in(engine, "later")
        return "later" in sent()

    wait_until(is_told_of, timeout=60)
    assert set(sent()) == {"later"}
    (warned,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "no token" in warned


@pytest.mark.slow
def test_what_is_said_while_the_thread_gives_up_is_sent(
    engine: Engine, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeup, "_IDLE", 0.0)
    monkeypatch.setattr(wakeup, "_APART", 0.0)
    for n in range(1, 51):
        commit_in(engine, f"queue {n}")
        wait_until(lambda: len(sent()) == n)  # noqa: B023
    assert sent() == [f"queue {n}" for n in range(1, 51)]


def test_what_is_said_during_a_message_is_in_the_next_one_whatever_becomes_of_the_first(
    engine: Engine, sent: Sent
) -> None:
    """The server gets the first message, and its answer is held back until the connection is cut."""
    engine.connect().close()  # the application's goes to the server, and that of the messages through a proxy
    with Proxy((str(engine.url.host), engine.url.port or 5432)) as proxy:

        def through_the_proxy(dialect: object, record: object, arguments: object, parameters: dict[str, Any]) -> None:
            parameters.update(host="127.0.0.1", port=proxy.port)

        event.listen(engine, "do_connect", through_the_proxy)
        proxy.mute(b"pg_notify")
        commit_in(engine, "first")
        wait_until(lambda: sent() == ["first"])
        commit_in(engine, "second", "third")
        assert sent() == ["first"]
        proxy.cut()
        proxy.go_on()
        wait_until(lambda: sent() == ["first", "second", "third"])
