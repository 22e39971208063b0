"""`sqla-jobs dev`: a database, a worker and the dashboard in one terminal, which end together."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.orm import Session

from tests.conftest import processes_of_ours
from tests.helpers import wait_until

APPLICATION = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqla_jobs import Jobs

class Base(DeclarativeBase): ...

class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)

jobs = Jobs(Base)

@jobs.task
def settle(order: int) -> int:
    return order

@jobs.task(queue="mail", max_attempts=1)
def send() -> None:
    raise ValueError("no such address\\nand more")
"""
_DEV = ("sqla_jobs", "dev", "shop:jobs")
_URL = re.compile(r"DATABASE_URL=(\S+)")


class Terminal:
    """A terminal in which `dev` runs."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self._folder = folder
        self._environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
        self._environment |= {**environment, "PYTHONDONTWRITEBYTECODE": "1"}
        self._log = folder / "terminal.log"
        self.mark = f"SQLA_JOBS_TERMINAL={uuid.uuid4()}"
        name, value = self.mark.split("=")
        self._environment[name] = value
        self._before = processes_of_ours(self.mark)

    def run(self, *arguments: str, program: Sequence[str] = _DEV) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", *program, "--port", "0", *arguments]
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=self._folder, env=self._environment, stdout=output, stderr=output, start_new_session=True
            )
        return self.process

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait_for(self, words: str) -> None:
        wait_until(lambda: words in self.said or self.process.poll() is not None, timeout=60)
        assert words in self.said, self.said

    def url(self) -> str:
        found = _URL.search(self.said)
        assert found is not None, self.said
        return found[1]

    def call(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "sqla_jobs", *arguments]
        environment = self._environment | {"DATABASE_URL": self.url()}
        done = subprocess.run(command, cwd=self._folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def interrupt(self) -> int:
        """Press Ctrl-C: the terminal signals all processes of its group."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(30)

    @property
    def processes(self) -> list[str]:
        return [process for process in processes_of_ours(self.mark) if process not in self._before]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the account can reach as which root runs PostgreSQL."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def write(folder: Path) -> Callable[[str], None]:
    def write(code: str) -> None:
        (folder / "shop.py").write_text(code)

    return write


@pytest.fixture
def terminal(folder: Path) -> Iterator[Terminal]:
    terminal = Terminal(folder)
    yield terminal
    if terminal.process.poll() is None:
        terminal.process.terminate()
        terminal.process.wait(60)
    wait_until(lambda: not terminal.processes, timeout=60)


@pytest.mark.slow
def test_everything_runs_until_ctrl_c_and_the_data_are_kept(
    terminal: Terminal, write: Callable[[str], None], folder: Path
) -> None:
    write(APPLICATION)
    terminal.run()
    terminal.wait_for("serves {'default': 4, 'mail': 4}")
    url = terminal.url()
    assert terminal.said.startswith(f"PostgreSQL, with its data in .sqla-jobs/postgres: DATABASE_URL={url}\n")
    terminal.call("enqueue", "shop:jobs", "settle", '{"order": 7}')
    terminal.call("enqueue", "shop:jobs", "send")
    terminal.wait_for("job 2 send ")
    lines = [line for line in terminal.said.splitlines() if " job " in line]
    assert re.fullmatch(r"\d\d:\d\d:\d\d job 1 settle attempt 1/25 succeeded after \d+\.\d{3} s", lines[0])
    assert re.fullmatch(r"\S+ job 2 send attempt 1/1 failed after \d+\.\d{3} s: ValueError: no such address", lines[1])
    engine = create_engine(url)
    with Session(engine) as session:
        assert session.scalars(select(text("count(*)")).select_from(text("orders"))).one() == 0
    engine.dispose()
    address = re.search(r"Dashboard .*: http://(127\.0\.0\.1:\d+)(/\?token=\S+)", terminal.said)
    assert address is not None
    connection = HTTPConnection(address[1], timeout=30)
    connection.request("GET", address[2])
    assert connection.getresponse().status == 303
    assert (folder / ".sqla-jobs/.gitignore").read_text() == "*\n"

    write(APPLICATION.replace("settle(order: int)", "settle(order: int, again: bool = True)"))
    terminal.wait_for("all processes are replaced")
    assert terminal.interrupt() == 0
    wait_until(lambda: not terminal.processes)

    terminal.run()
    terminal.wait_for("serves {'default': 4, 'mail': 4}")
    assert terminal.url() == url
    assert "succeeded" in terminal.call("show", "shop:jobs", "1")
    os.killpg(terminal.process.pid, signal.SIGHUP)  # the window is closed
    assert terminal.process.wait(30) == 0
    wait_until(lambda: not terminal.processes)


@pytest.mark.slow
def test_a_database_that_is_given_is_used_and_gets_no_table_but_those_of_jobs(
    write: Callable[[str], None], folder: Path, database_url: str
) -> None:
    write(APPLICATION)
    terminal = Terminal(folder, DATABASE_URL=database_url)
    process = terminal.run()
    try:
        terminal.wait_for("serves {'default': 4, 'mail': 4}")
    finally:
        process.terminate()
        assert process.wait(30) == 0
    assert terminal.said.startswith("version 2: ")
    assert not (folder / ".sqla-jobs").exists()
    engine = create_engine(database_url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT to_regclass('orders')")) is None
    engine.dispose()


@pytest.mark.slow
def test_where_there_is_an_alembic_history_it_waits_for_that(
    write: Callable[[str], None], folder: Path, database_url: str
) -> None:
    write(APPLICATION)
    (folder / "alembic.ini").write_text("[alembic]\nscript_location = migrations\n")
    terminal = Terminal(folder, DATABASE_URL=database_url)
    process = terminal.run()
    try:
        terminal.wait_for("(alembic.ini), so nothing is changed here. Run in another terminal: alembic upgrade heads")
        assert "there is no table sqla_jobs in this database" in terminal.said
        make = f"import shop, sqlalchemy; shop.Base.metadata.create_all(sqlalchemy.create_engine({database_url!r}))"
        subprocess.run([sys.executable, "-c", make], cwd=folder, check=True, timeout=60)
        terminal.wait_for("serves {'default': 4, 'mail': 4}")
    finally:
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.slow
def test_when_it_is_killed_itself_no_process_is_left(terminal: Terminal, write: Callable[[str], None]) -> None:
    write(APPLICATION)
    terminal.run()
    terminal.wait_for("serves {'default': 4, 'mail': 4}")
    assert len(terminal.processes) > 3
    terminal.process.kill()
    terminal.process.wait()
    wait_until(lambda: not terminal.processes, timeout=60)
