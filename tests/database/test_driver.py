"""What the library relies on below SQLAlchemy: psycopg keeps to it, the oldest supported one and the newest."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.errors import DivisionByZero
from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from sqla_jobs.database.driver import CommittingBy, NoAnswer, ask, beginning, bound, driver, driver_of_run, quoted
from sqla_jobs.postgres import local_postgres
from sqla_jobs.queries.begin import begin, begin_elsewhere

PATIENCE = 0.5


def dsn(url: str | URL) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.fixture
def connection(module_engine: Engine) -> Iterator[psycopg.Connection[Any]]:
    """A connection of psycopg's, as one of SQLAlchemy's has it below."""
    with psycopg.connect(dsn(module_engine.url)) as made:
        yield made


@pytest.fixture(scope="module")
def server_of_ours() -> Iterator[str]:
    """The URL of a server whose processes may be stopped."""
    with local_postgres() as url:
        yield url


WAITS: dict[str, Callable[[psycopg.Connection[Any]], object]] = {
    "a statement": lambda connection: connection.execute("SELECT 1"),
    "a prepared statement": lambda connection: connection.execute("SELECT %s", [1], prepare=True),
    "many statements": lambda connection: connection.cursor().executemany("SELECT %s", [[1], [2]]),
    "a commit": lambda connection: connection.commit(),
    "a rollback": lambda connection: connection.rollback(),
    "a copy": lambda connection: list(connection.cursor().stream("SELECT 1")),
    "several statements": lambda connection: ask(connection, "SELECT 1; SELECT 2", PATIENCE),
}


@pytest.mark.slow
@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_each_wait_for_a_silent_server_ends(
    server_of_ours: str, wait: Callable[[psycopg.Connection[Any]], object]
) -> None:
    """Its process is stopped in the middle of a transaction."""
    connection = psycopg.connect(dsn(server_of_ours))
    bound(connection, PATIENCE)
    connection.execute("SELECT 1")
    pid = connection.info.backend_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(NoAnswer):
            wait(connection)
        assert connection.closed
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["psycopg", "asyncpg"])
def test_so_it_does_in_an_event_loop(server_of_ours: str, kind: str) -> None:
    """As a task's transaction begins."""

    def begun(connection: Connection, patience: float = PATIENCE) -> object:
        raw = driver_of_run(connection)
        if raw is None:
            return begin_elsewhere(connection, noticed_within=30, patience=patience)
        return begin(raw, noticed_within=30, patience=patience)

    async def wait() -> float:
        engine = create_async_engine(make_url(server_of_ours).set(drivername=f"postgresql+{kind}"))
        async with engine.connect() as connection:
            pid = await connection.scalar(text("SELECT pg_backend_pid()"))
            assert await connection.run_sync(begun, 20) is True
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            since = time.monotonic()
            try:
                with pytest.raises(NoAnswer, match="no answer"):
                    await connection.run_sync(begun)
                return time.monotonic() - since
            finally:
                os.kill(pid, signal.SIGCONT)
                await connection.invalidate()
                await engine.dispose()

    assert PATIENCE <= asyncio.run(wait()) < 4  # asyncpg's connection gets 2 s to close


def test_several_statements_are_one_message_and_the_first_error_ends_them(
    connection: psycopg.Connection[Any],
) -> None:
    assert [answer.get_value(0, 0) for answer in ask(connection, "SELECT 1; SELECT 'zwei'")] == [b"1", b"zwei"]
    with pytest.raises(DivisionByZero):
        ask(connection, "SELECT 1/0; CREATE TABLE not_reached ()")
    assert connection.execute("SELECT to_regclass('not_reached')").fetchone() == (None,)


SETTINGS = list(itertools.product([None, *IsolationLevel], [None, True, False], [None, True, False]))


@pytest.mark.parametrize(("level", "read_only", "deferrable"), SETTINGS)
def test_a_transaction_begins_as_psycopg_begins_it(
    connection: psycopg.Connection[Any], level: Any, read_only: Any, deferrable: Any
) -> None:
    connection.isolation_level, connection.read_only, connection.deferrable = level, read_only, deferrable
    names = ("transaction_isolation", "transaction_read_only", "transaction_deferrable")
    question = f"SELECT {', '.join(f'current_setting({name!r})' for name in names)}"
    expected = connection.execute(question.encode()).fetchone()
    connection.rollback()
    assert beginning(connection).startswith("BEGIN")
    (*_, answer) = ask(connection, f"{beginning(connection)}{question}")
    assert tuple((answer.get_value(0, place) or b"").decode() for place in range(3)) == expected
    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
    assert beginning(connection) == "", "it has begun"


@pytest.mark.parametrize("said", ["it's", 'a "\\" and \\n', "100 %s %(n)s", "é € 🙂", "", "$1; --"])
def test_a_text_is_quoted_as_the_server_reads_it(connection: psycopg.Connection[Any], said: str) -> None:
    (answer,) = ask(connection, f"SELECT {quoted(connection, said)}")
    assert (answer.get_value(0, 0) or b"").decode() == said
    assert quoted(connection, None) == "NULL"


def test_the_function_is_that_of_who_has_the_connection_now(database_url: str) -> None:
    """The pool may give it to somebody else before the first one's block ends."""
    commits: list[str] = []
    engine = create_engine(database_url, pool_size=1, max_overflow=0)

    def committing(name: str, raw: psycopg.Connection[Any]) -> AbstractContextManager[None]:
        def commit() -> None:
            commits.append(name)
            ask(raw, "COMMIT")

        return CommittingBy(raw, commit)

    with ExitStack() as first, ExitStack() as second:
        one = first.enter_context(engine.connect())
        raw = driver(one)
        one.execute(text("SELECT 1"))
        first.enter_context(committing("first", raw))
        one.commit()
        one.close()
        other = second.enter_context(engine.connect())
        assert driver(other) is raw
        other.execute(text("SELECT 1"))
        second.enter_context(committing("second", raw))
        first.close()
        other.commit()
    assert commits == ["first", "second"]
    assert "commit" not in vars(raw)
    engine.dispose()


def test_a_failed_commit_reaches_sqlalchemy(engine: Engine) -> None:
    """Which then takes the connection out of its pool where it is lost."""

    def fail() -> None:
        raise psycopg.OperationalError("the connection is lost")

    lost: list[bool] = []

    def seen(context: ExceptionContext) -> None:
        lost.append(context.is_disconnect)

    event.listen(engine, "handle_error", seen)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        with CommittingBy(driver(connection), fail), suppress(Exception):
            connection.commit()
    assert len(lost) == 1


@pytest.mark.slow
def test_each_new_connection_has_a_wait_of_its_own(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.connect() as one, engine.connect() as other:
        bound(driver(one), PATIENCE)
        assert other.scalar(text(f"SELECT 1 FROM pg_sleep({2 * PATIENCE})")) == 1
        with pytest.raises(NoAnswer):
            driver(one).execute(f"SELECT pg_sleep({4 * PATIENCE})".encode())
    engine.dispose()
