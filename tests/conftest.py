"""A server for the session, an empty database for each test, and no process left behind."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from jinja2 import BytecodeCache, Environment
from jinja2.bccache import Bucket
from sqlalchemy import Engine, MetaData, create_engine
from sqlalchemy.orm import Session

from sqla_jobs import Jobs
from sqla_jobs.dashboard import site
from sqla_jobs.runtime.settings import Settings
from sqla_jobs.testing.databases import Databases
from tests import shop
from tests.helpers import spawning, wait_until
from tests.programs import BROWSER, Program, found

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parent.parent
# Images of containers set it. Then each process of a test compiles the package anew, and each of xdist all tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# By default the collector looks through all that the tests have imported, for up to a second, every few tests.
gc.set_threshold(20_000)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(mark.args[0] is BROWSER for mark in item.iter_markers("needs")):
            item.add_marker("browser")
    long = ("timeout", "promise")
    items.sort(key=lambda item: all(item.get_closest_marker(name) is None for name in long))  # none is left at the end


def pytest_collection_finish() -> None:
    """A test that collects garbage looks through what it has made, not through a million objects of what it imports."""
    gc.freeze()


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
    there_before = processes_of_ours(mark)  # the server, where other tests have used it

    def left() -> list[str]:
        return [process for process in processes_of_ours(mark) if process not in there_before]

    yield
    with suppress(AssertionError):
        wait_until(lambda: not left())
    assert left() == []


@pytest.fixture(autouse=True)
def no_polls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers and clocks of this process do not poll: what waits for a poll hangs. Polls are for lost messages."""
    if request.node.get_closest_marker("polls"):
        return
    checked = Settings.checked

    def without_polls(*args: Any, **options: Any) -> Settings:
        return checked(*args, **{**options, "poll": 3600})

    monkeypatch.setattr(Settings, "checked", without_polls)


class Compiled(BytecodeCache):
    """The code of each template, once compiled."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if bucket.key in self._kept:
            bucket.bytecode_from_string(self._kept[bucket.key])

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._kept[bucket.key] = bucket.bytecode_to_string()


@pytest.fixture(scope="session", autouse=True)
def compiled_once() -> Iterator[None]:
    """Each application has its own environment, which compiles all templates anew: half the time of a page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "Environment", partial(Environment, bytecode_cache=Compiled()))
        yield


@pytest.fixture(scope="session")
def server_url(sqla_jobs_postgres: str) -> str:
    """The URL of a PostgreSQL server: DATABASE_URL where it is set, or one of our own."""
    return sqla_jobs_postgres


@pytest.fixture(scope="session")
def sqla_jobs_metadata() -> MetaData:
    """The tables of the fixtures of the pytest plugin, for tests that commit nothing."""
    return shop.Base.metadata


@pytest.fixture
def application() -> Jobs[Any]:
    """The jobs whose tables `database` has. A module or a folder with jobs of its own overrides it."""
    return shop.jobs


@pytest.fixture
def database_url(request: pytest.FixtureRequest, sqla_jobs_databases: Databases) -> Iterator[str]:
    """The URL of a new database. It is empty, unless the test also asks for `database`."""
    metadata = None
    if "database" in request.fixturenames:
        metadata = request.getfixturevalue("application").Job.metadata
    with sqla_jobs_databases.new(metadata) as url:
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
def module_engine(sqla_jobs_databases: Databases) -> Iterator[Engine]:
    """An engine on a database that the tests of one module share: they roll back what they do."""
    with sqla_jobs_databases.new() as url:
        engine = create_engine(url)
        yield engine
        engine.dispose()


StartWorker = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """Starts `python -m sqla_jobs.worker`; whatever is left is killed at the end, and its log printed.

    Without a URL the application binds itself.
    Each is a process group of its own, with its children. The log is `worker-N.log` in `tmp_path`.
    """
    with spawning() as spawn:
        numbers = count()

        def start(url: str | None, *options: str, application: str = "tests.shop:jobs") -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "sqla_jobs.worker", application]
            command += [] if url is None else ["--database-url", url]
            command += ["--no-clock", "--heartbeat", "0.2", "--lease", "1.5", "--poll", "3600", *options]
            return spawn(command, ROOT, tmp_path / f"worker-{next(numbers)}.log")

        yield start


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
