"""A migration that ends in the middle is run again, and the next one ends with the same tables."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from sqla_jobs.migrations import LATEST, downgrade, upgrade
from sqla_jobs.migrations.applying import migrate
from sqla_jobs.migrations.comparison import compare
from tests.conftest import ROOT
from tests.helpers import MAPPED, wait_until
from tests.migrations.test_migrations import catalog

INSERT = "INSERT INTO sqla_jobs (task, args, unique_key) VALUES ('write', '{}', 'the only one')"
HERE = "datname = current_database()"
BUILDS = text(f"SELECT count(*) FROM pg_stat_progress_create_index WHERE {HERE}")
PATIENT = text(
    f"SELECT count(*) FROM pg_stat_activity WHERE {HERE} AND state = 'active' AND query LIKE '%lock_timeout%FOR try%'"
)


def run(engine: Engine, step: Callable[[Operations], None]) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        with context.begin_transaction():
            step(Operations(context))


@pytest.fixture
def before(engine: Engine) -> Engine:
    """An engine on a database with the tables of the release before."""
    run(engine, lambda op: upgrade(op, from_=0, to=2))
    return engine


@pytest.fixture
def killed(database_url: str) -> Iterator[Callable[[str, int], str]]:
    """Migrates `up` or `down` in another process, which is killed before a statement."""
    command = [sys.executable, "-m", "tests.migrations.killed", database_url]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        said, heard = process.stdin, process.stdout
        assert said is not None
        assert heard is not None
        assert heard.readline() == "ready\n"

        def run(direction: str, last: int) -> str:
            print(direction, last, file=said, flush=True)
            return heard.readline().strip()

        yield run
        said.close()
        assert process.wait(20) == 0


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_migration_that_was_killed_at_any_statement_is_run_again(
    before: Engine, database_url: str, killed: Callable[[str, int], str]
) -> None:
    tables = {"down": catalog(database_url)}
    with before.begin() as connection:
        connection.execute(text(INSERT))
    assert killed("up", 0) == "done"
    tables["up"] = catalog(database_url)
    assert killed("down", 0) == "done"
    number, ended = 0, set[str]()
    for number in range(1, 100):
        ended.clear()
        for direction in ("up", "down"):
            ended.add(how := killed(direction, number))
            if how == "killed":
                assert killed(direction, 0) == "done"
            assert catalog(database_url) == tables[direction], f"{direction}, killed at statement {number}"
        if ended == {"done"}:
            break
    assert ended == {"done"}
    assert number > 20


@pytest.mark.slow
def test_the_next_migration_waits_for_what_a_killed_one_has_left_in_the_server(
    before: Engine, database_url: str
) -> None:
    """The server ends the build of an index although nobody waits for it any more."""
    command = [sys.executable, "-m", "sqla_jobs", "migrate", "tests.helpers:MAPPED", "--database-url", database_url]
    snapshot = before.connect().execution_options(isolation_level="REPEATABLE READ")
    with snapshot, before.connect().execution_options(isolation_level="AUTOCOMMIT") as beside:
        snapshot.execute(text("SELECT 1"))
        with subprocess.Popen(command, cwd=ROOT) as first:
            wait_until(lambda: beside.scalar(BUILDS), message="no index is built")
            first.send_signal(signal.SIGKILL)
        second = threading.Thread(target=migrate, args=(before, MAPPED._models))
        second.start()
        wait_until(lambda: beside.scalar(PATIENT), message="the second does not wait for a lock")
        assert beside.scalar(BUILDS) == 1, "that of the first"
        snapshot.rollback()
        second.join(30)
        assert not second.is_alive()
    assert_migrated(before)


@pytest.mark.slow
def test_of_several_migrations_at_once_one_does_it_and_the_others_wait(before: Engine) -> None:
    lines = list[list[str]]()

    def upgrade_one() -> None:
        lines.append(migrate(before, MAPPED._models))

    threads = [threading.Thread(target=upgrade_one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(map(len, lines)) == [0, 0, 0, 1]
    assert_migrated(before)


def test_a_refused_downgrade_leaves_the_version_that_it_has_reached(before: Engine, database_url: str) -> None:
    tables = catalog(database_url)
    migrate(before, MAPPED._models)
    with before.begin() as connection:
        connection.execute(text("CREATE TABLE notes (job_id bigint REFERENCES sqla_jobs (id))"))
    with pytest.raises(DBAPIError, match="notes"):
        run(before, lambda op: downgrade(op, from_=LATEST, to=0))
    with before.begin() as connection:
        connection.execute(text("DROP TABLE notes"))
    assert catalog(database_url) == tables


def assert_migrated(engine: Engine) -> None:
    with engine.connect() as connection:
        assert compare(connection, MAPPED._models) == []
