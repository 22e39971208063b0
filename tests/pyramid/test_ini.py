"""Commands on the application that an ini names."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqla_jobs import Jobs
from sqla_jobs.cli.main import main
from tests.conftest import ROOT
from tests.pyramid_shop import Effect, jobs, record

pytestmark = pytest.mark.slow
INI = """
[app:main]
use = call:tests.pyramid_shop:main
kind = cookiecutter
sqlalchemy.url = URL
sqla_jobs.queues = mail=2
sqla_jobs.clock = false

[app:other]
use = main
sqla_jobs.queues = default

[pipeline:filtered]
pipeline = outermost other

[filter:outermost]
use = call:tests.pyramid.test_ini:filter_factory

[app:doomed]
use = main
doomed = true

[app:without]
use = call:pyramid.config:Configurator
"""
Run = Callable[..., str]


def filter_factory(_: object) -> Callable[[Any], Any]:
    """Of PasteDeploy: what it makes hides the application."""
    return _Filter


class _Filter:
    def __init__(self, app: Any) -> None:
        self._app = app


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


@pytest.fixture
def run(tmp_path: Path, database: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a command in the folder of the ini. The order of a job is there: 1 in `mail`, 2 in `default`."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    tmp_path.joinpath("production.ini").write_text(INI.replace("URL", database_url.replace("%", "%%")))
    with Session(database) as session:
        record.options(queue="mail").enqueue(session, n=1)
        session.flush()
        record.enqueue(session, n=2)
        session.commit()

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, code: int = 0) -> str:
        jobs._resolver = jobs._bound = None
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == code, done.output
        return done.output

    yield run
    jobs._resolver = jobs._bound = None


def effects(engine: Engine) -> list[int]:
    with Session(engine) as session:
        return sorted(one.n for one in session.query(Effect))


@pytest.mark.parametrize(("name", "served"), [("production.ini", [1]), ("production.ini#filtered", [2])])
def test_a_worker_serves_the_queues_of_its_settings(
    run: Run, database: Engine, tmp_path: Path, name: str, served: list[int]
) -> None:
    """Also where a filter hides the application."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "sqla_jobs.worker", name, "--drain"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "1 run\n"
    assert effects(database) == served


def test_commands_show_and_change_its_jobs(run: Run) -> None:
    assert "queued" in run("show", "production.ini", "1")
    run("cancel", "production.ini", "1")
    assert "cancelled" in run("show", "production.ini", "1")
    assert "default" in run("status", "production.ini")


def test_commands_show_the_jobs_of_an_application_that_is_read_only_and_change_none(run: Run) -> None:
    for command in (["show"], ["status"], ["doctor"], ["list"], ["limit", "list"]):
        run(*command, "production.ini#doomed", *(["1"] if command == ["show"] else []))
    run("pause", "production.ini#doomed", "mail", code=1)
    assert "queued" in run("show", "production.ini", "1")


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("staging.ini", [], "staging.ini"),
        ("production.ini#othr", [], "othr"),
        ("production.ini#without", [], "config.add_jobs"),
        ("production.ini", ["--database-url", "postgresql://localhost/other"], "sqlalchemy.url"),
    ],
)
def test_what_is_wrong_is_told(run: Run, name: str, options: list[str], named: str) -> None:
    assert named in run("status", name, *options, code=1)
