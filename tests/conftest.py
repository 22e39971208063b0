"""A server for the session, an empty database for each test, and no process left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, MetaData, create_engine, make_url
from sqlalchemy.orm import Session

from sqla_jobs import Jobs
from sqla_jobs.postgres import local_postgres
from tests import shop
from tests.helpers import wait_until
from tests.programs import BROWSER, Program, found

ROOT = Path(__file__).parent.parent


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(mark.args[0] is BROWSER for mark in item.iter_markers("needs")):
            item.add_marker("browser")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Here and not in a fixture, so that all tests without their program are one line of the summary."""
    for mark in item.iter_markers("needs"):
        program: Program = mark.args[0]
        if found(program) is None:
            told = f"{program.package} is missing. {program.remedy}"
            if os.environ.get("CI") == "true":
                pytest.fail(told, pytrace=False)
            pytest.skip(told)


@pytest.fixture(scope="session", autouse=True)
def no_process_left() -> Iterator[None]:
    """At the end all that the tests started is gone: children, and orphans by their mark."""
    mark = f"SQLA_JOBS_TESTS={uuid.uuid4()}"
    name, value = mark.split("=")
    os.environ[name] = value
    yield
    with suppress(AssertionError):
        wait_until(lambda: not processes_of_ours(mark))
    assert processes_of_ours(mark) == []


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The URL of a PostgreSQL server: DATABASE_URL where it is set, or one of our own."""
    if given := os.environ.get("DATABASE_URL"):
        yield re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", given)
    else:
        with local_postgres() as url:
            yield url


@contextmanager
def new_database(server_url: str, template: str = "template0") -> Generator[str]:
    """The URL of a copy of `template`, an empty database by default. It is dropped afterwards."""
    server = make_url(server_url)
    name = f"sqla_jobs_test_{uuid.uuid4().hex}"
    dsn = server.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
        yield server.set(database=name).render_as_string(hide_password=False)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


class Templates:
    """Databases with the tables of an application. A copy of one is made faster than its tables."""

    def __init__(self, server_url: str, kept: ExitStack) -> None:
        self._server_url = server_url
        self._kept = kept
        self._names: dict[MetaData, str] = {}

    def of(self, jobs: Jobs[Any]) -> str:
        """The name of the one for these jobs, which is made when it is first asked for."""
        metadata: MetaData = jobs.Job.metadata
        if metadata not in self._names:
            url = self._kept.enter_context(new_database(self._server_url))
            engine = create_engine(url)
            metadata.create_all(engine)
            engine.dispose()  # what is connected to cannot be copied
            self._names[metadata] = str(engine.url.database)
        return self._names[metadata]


@pytest.fixture(scope="session")
def templates(server_url: str) -> Iterator[Templates]:
    with ExitStack() as kept:
        yield Templates(server_url, kept)


@pytest.fixture
def application() -> Jobs[Any]:
    """The jobs whose tables `database` has. A module or a folder with jobs of its own overrides it."""
    return shop.jobs


@pytest.fixture
def database_url(request: pytest.FixtureRequest, server_url: str, templates: Templates) -> Iterator[str]:
    """The URL of a new database. It is empty, unless the test also asks for `database`."""
    template = "template0"
    if "database" in request.fixturenames:
        template = templates.of(request.getfixturevalue("application"))
    with new_database(server_url, template) as url:
        yield url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on a new database. It is empty, unless the test also asks for `database`."""
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def database(engine: Engine, application: Jobs[Any]) -> Iterator[Engine]:
    """An engine on a new database with the tables of `application`, which is bound to it."""
    application.bind(engine)
    shop.gate.clear()
    shop.begun.clear()
    yield engine
    shop.gate.set()  # no thread waits any longer


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    with Session(database) as session:
        yield session


@pytest.fixture(scope="module")
def module_engine(server_url: str) -> Iterator[Engine]:
    """An engine on a database that the tests of one module share: they roll back what they do."""
    with new_database(server_url) as url:
        engine = create_engine(url)
        yield engine
        engine.dispose()


StartWorker = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """Starts `python -m sqla_jobs.worker`; whatever is left is killed at the end, and its log printed.

    Each is a process group of its own, with its children. The log is `worker-N.log` in `tmp_path`.
    """
    started: list[subprocess.Popen[bytes]] = []

    def start(url: str, *options: str, application: str = "tests.shop:jobs") -> subprocess.Popen[bytes]:
        path = tmp_path / f"worker-{len(started)}.log"
        command = [sys.executable, "-m", "sqla_jobs.worker", application, "--database-url", url]
        command += ["--no-clock", "--heartbeat", "0.2", "--lease", "1.5", *options]
        with path.open("wb") as log:
            started.append(subprocess.Popen(command, cwd=ROOT, stderr=log, stdout=log, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for log in sorted(tmp_path.glob("worker-*.log")):
        print(log.name, log.read_text(), sep="\n")


def processes_of_ours(mark: str) -> list[str]:
    """Our children, and all that carry the mark in their environment. (Empty where no /proc is.)"""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile, or belongs to somebody else
            parent = process.joinpath("stat").read_text(errors="replace").rpartition(")")[2].split()[1]
            command = process.joinpath("cmdline").read_text(errors="replace").replace("\0", " ")
            is_child = parent == str(os.getpid()) and "multiprocessing.resource_tracker" not in command
            if is_child or mark in process.joinpath("environ").read_text(errors="replace"):
                found.append(f"{process.name}: {command}")
    return found
