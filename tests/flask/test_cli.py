"""`flask jobs` and worker processes of Flask applications, as people start them; and Flask-Migrate."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from flask.cli import FlaskGroup
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tests.application import READS_TOML
from tests.conftest import ROOT
from tests.flask_shop import Shop, build
from tests.helpers import wait_until

pytestmark = pytest.mark.slow
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def shop(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """A shop that processes started by the test have too."""
    monkeypatch.setenv("SHOP_KIND", "sqlalchemy")
    monkeypatch.setenv("SHOP_URL", database_url)
    shop = build("sqlalchemy", database_url)
    with shop.tables():
        yield shop


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `python -m …`, each a process group of its own; whatever is left is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(*command: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def flask(start: Start) -> Callable[..., tuple[int, str, str]]:
    """Runs `flask --app … jobs …` to its end: exit code, output, errors."""

    def run(*arguments: str, app: str = "tests.flask_shop:create_app") -> tuple[int, str, str]:
        process = start("flask", "--app", app, "jobs", *arguments)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    return run


Run = Callable[..., tuple[int, str, str]]


def _count(session: Session, entity: type[Any]) -> int | None:
    session.rollback()
    return session.scalar(select(func.count()).select_from(entity))


def test_the_commands_work_on_the_application_that_flask_loads(shop: Shop, session: Session, flask: Run) -> None:
    shop.jobs.tasks["record"].enqueue(session, n=1)
    session.commit()
    code, out, err = flask("status")
    assert (code, "python -m flask jobs worker" in err) == (0, True)
    assert re.search(r"^default +1 ", out, re.MULTILINE)
    assert flask("worker", "--database-url", "postgresql+psycopg://localhost/other")[0] == 1
    assert flask("worker", "--drain", "--log-level", "ERROR") == (0, "1 run\n", "")
    assert session.scalar(select(func.count()).select_from(shop.Effect)) == 1


class TestOnFlaskSQLAlchemy:
    def test_options_of_all_commands_default_to_what_the_config_says(
        self, shop: Shop, session: Session, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FLASK_SQLA_JOBS_QUEUES", '{"mail": 3, "default": 2}')
        monkeypatch.setenv("FLASK_SQLA_JOBS_LEASE", "77")
        monkeypatch.setenv("FLASK_SQLA_JOBS_CLOCK", "false")
        monkeypatch.setenv("FLASK_SQLA_JOBS_PROCESSES", "2")
        process = shop.jobs.Process
        found = select(process.kind, process.queues, process.lease).order_by(process.started_at)
        running = start("sqla_jobs.worker", "tests.flask_shop:create_app()", "--heartbeat", "0.2")
        wait_until(lambda: _count(session, process) == 2)
        assert [tuple(row) for row in session.execute(found)] == 2 * [("worker", {"mail": 3, "default": 2}, 77.0)]
        running.terminate()
        wait_until(lambda: _count(session, process) == 0)
        start(
            "flask", "--app", "tests.flask_shop:create_app", "jobs", "worker", "--queues", "other", "--processes", "1"
        )
        wait_until(lambda: _count(session, process) == 1)
        assert [tuple(row) for row in session.execute(found)] == [("worker", {"other": 8}, 77.0)]
        start("sqla_jobs.clock", "tests.flask_shop:create_app()")
        wait_until(lambda: _count(session, process) == 2)
        assert [tuple(row) for row in session.execute(found)][1:] == [("clock", {}, 77.0)]

    def test_the_application_is_loaded_once(
        self,
        shop: Shop,
        session: Session,
        start: Start,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        (tmp_path / "counted.py").write_text(
            "from tests.flask_shop import create_app as create\n"
            f"def create_app():\n    print('loaded', file=open({str(tmp_path / 'log')!r}, 'a'))\n    return create()\n"
        )
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
        monkeypatch.setenv("FLASK_SQLA_JOBS_HEARTBEAT", "0.2")
        monkeypatch.setenv("FLASK_SQLA_JOBS_LOG_FORMAT", "json")
        process = start("sqla_jobs.worker", "counted:create_app()", "--drain")
        _, err = process.communicate(timeout=30)
        assert (process.returncode, tmp_path.joinpath("log").read_text()) == (0, "loaded\n"), err
        assert [json.loads(line)["level"] for line in err.splitlines()], "the config says how it logs"


MIGRATED = """
import os
from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqla_jobs import Jobs
from sqla_jobs.flask import FlaskJobs

class Base(DeclarativeBase): ...

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["SHOP_URL"]
db = SQLAlchemy(app, model_class=Base)
jobs = Jobs(db.Model)
FlaskJobs(jobs, app)
Migrate(app, db)

class Order(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)

@jobs.task
def order(session: Session) -> None:
    session.add(Order())
"""


@pytest.fixture
def migrated(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs commands of Flask on an application of Flask-Migrate, in its folder; each makes the application anew."""
    tmp_path.joinpath("app.py").write_text(MIGRATED)
    monkeypatch.setenv("SHOP_URL", database_url)
    monkeypatch.chdir(tmp_path)

    def configure(file: str) -> None:
        """Leave what this process logs as it is."""

    monkeypatch.setattr("logging.config.fileConfig", configure)

    def flask(*arguments: str) -> str:
        made = runpy.run_path("app.py")
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of what its env.py calls
            done = CliRunner().invoke(FlaskGroup(create_app=lambda: made["app"]), arguments)
        with made["app"].app_context():
            made["db"].engine.dispose()
        assert done.exit_code == 0, done.output
        return done.output

    return flask


def test_the_way_of_the_docs_with_flask_migrate_works(migrated: Callable[..., str], tmp_path: Path) -> None:
    page = ROOT.joinpath("docs/flask.md").read_text(encoding="utf-8").partition("## With Flask-Migrate")[2]
    settings, commands = re.findall(r"```(?:ini|sh)\n(.*?)```", page, re.DOTALL)
    migrated("db", "init")
    ini = tmp_path / "migrations/alembic.ini"
    if not READS_TOML:  # an older Alembic, and what the page says for one
        settings = (
            "version_path_separator = space\nversion_locations = %(here)s/versions sqla_jobs:migrations/versions\n"
        )
    ini.write_text(ini.read_text().replace("[alembic]\n", f"[alembic]\n{settings}", 1))
    for command in commands.splitlines():
        migrated(*command.split()[1:])
    migrated("db", "check")
    assert len(list(tmp_path.glob("migrations/versions/*.py"))) == 3
