"""`flask jobs` and worker processes of Flask applications, as people start them; and Flask-Migrate."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.cli import FlaskGroup, ScriptInfo
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tests.application import READS_TOML, import_as_old_alembics_forget_to
from tests.conftest import ROOT
from tests.flask_shop import Shop, build
from tests.helpers import wait_until

pytestmark = pytest.mark.slow
QUICK = ["--no-clock", "--heartbeat", "0.2", "--lease", "1.5"]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(params=["sqlalchemy", "lite", "scoped"])
def shop(request: pytest.FixtureRequest, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """A shop that processes started by the test have too."""
    monkeypatch.setenv("SHOP_KIND", request.param)
    monkeypatch.setenv("SHOP_URL", database_url)
    shop = build(request.param, database_url)
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


def test_one_worker_of_two_is_killed_and_its_job_has_its_effect_once(
    shop: Shop, session: Session, start: Start
) -> None:
    job = shop.jobs.tasks["once"].enqueue(session, n=1)
    session.commit()
    first = start("flask", "--app", "tests.flask_shop:create_app", "jobs", "worker", *QUICK)
    wait_until(lambda: _fresh(session, job).state == "running")
    start("sqla_jobs.worker", "tests.flask_shop:create_app()", *QUICK)
    os.killpg(first.pid, signal.SIGKILL)
    wait_until(lambda: _fresh(session, job).state == "succeeded")
    assert list(session.scalars(select(shop.Effect.n))) == [1]
    assert [str(run.outcome) for run in job.runs] == ["lost", "succeeded"]


def _fresh(session: Session, job: Any) -> Any:
    session.rollback()
    session.refresh(job)
    return job


def _count(session: Session, entity: type[Any]) -> int | None:
    session.rollback()
    return session.scalar(select(func.count()).select_from(entity))


def test_the_commands_work_on_the_application_that_flask_loads(
    shop: Shop, session: Session, flask: Run, start: Start
) -> None:
    shop.jobs.tasks["record"].enqueue(session, n=1)
    session.commit()
    code, out, err = flask("status")
    remedy = "start one: python -m flask jobs worker; if one runs, its log shows why its processes end"
    assert (code, err) == (0, f"\nwarning: workers: none is alive, and 1 job is waiting\n    {remedy}\n")
    assert re.search(r"^default +1 ", out, re.MULTILINE)
    _, err = start("sqla_jobs", "status", "tests.flask_shop:create_app()").communicate(timeout=60)
    assert "start one: python -m sqla_jobs.worker 'tests.flask_shop:create_app()'; if one runs" in err
    assert flask("worker", "--drain", "--log-level", "ERROR") == (0, "1 run\n", "")
    assert session.scalar(select(func.count()).select_from(shop.Effect)) == 1
    assert flask("schedule", "sync") == (0, "0 schedules are declared in code\n", "")


def test_a_clock_runs_and_stops(shop: Shop, start: Start, session: Session) -> None:
    clock = start("flask", "--app", "tests.flask_shop:create_app", "jobs", "clock")
    wait_until(lambda: _count(session, shop.jobs.Process) == 1)
    clock.terminate()
    clock.communicate(timeout=30)
    assert clock.returncode == 0


@pytest.mark.parametrize("shop", ["sqlalchemy"], indirect=True)
class TestOnFlaskSQLAlchemy:
    """What does not depend on where the sessions come from."""

    def test_options_default_to_what_the_config_says(
        self, shop: Shop, session: Session, start: Start, flask: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FLASK_SQLA_JOBS_QUEUES", '{"mail": 3, "default": 2}')
        monkeypatch.setenv("FLASK_SQLA_JOBS_CLOCK", "false")
        start("flask", "--app", "tests.flask_shop:create_app", "jobs", "worker", "--heartbeat", "0.2")
        process = shop.jobs.Process
        wait_until(lambda: _count(session, process) == 1)
        assert session.scalars(select(process.queues)).all() == [{"mail": 3, "default": 2}]
        said = flask("worker", "--queues", "other=x")
        assert (said[0], "other=x" in said[2]) == (2, True)

    def test_the_plain_commands_take_them_too(
        self, shop: Shop, session: Session, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FLASK_SQLA_JOBS_QUEUES", '{"mail": 3, "default": 2}')
        monkeypatch.setenv("FLASK_SQLA_JOBS_LEASE", "77")
        monkeypatch.setenv("FLASK_SQLA_JOBS_CLOCK", "false")
        monkeypatch.setenv("FLASK_SQLA_JOBS_PROCESSES", "2")
        process = shop.jobs.Process
        found = select(process.kind, process.queues, process.lease).order_by(process.started_at)
        worker = start("sqla_jobs.worker", "tests.flask_shop:create_app()", "--heartbeat", "0.2")
        wait_until(lambda: _count(session, process) == 2)
        assert [tuple(row) for row in session.execute(found)] == 2 * [("worker", {"mail": 3, "default": 2}, 77.0)]
        worker.terminate()
        wait_until(lambda: _count(session, process) == 0)
        start("sqla_jobs.worker", "tests.flask_shop:create_app()", "--queues", "other", "--processes", "1")
        wait_until(lambda: _count(session, process) == 1)
        assert [tuple(row) for row in session.execute(found)] == [("worker", {"other": 8}, 77.0)]
        start("sqla_jobs.clock", "tests.flask_shop:create_app()")
        wait_until(lambda: _count(session, process) == 2)
        assert [tuple(row) for row in session.execute(found)][1:] == [("clock", {}, 77.0)]

    @pytest.mark.parametrize("command", [("sqla_jobs.worker", "--drain"), ("sqla_jobs.clock",)], ids=" ".join)
    def test_the_application_is_loaded_once(
        self,
        shop: Shop,
        session: Session,
        start: Start,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        command: tuple[str, ...],
    ) -> None:
        (tmp_path / "counted.py").write_text(
            "from tests.flask_shop import create_app as create\n"
            f"def create_app():\n    print('loaded', file=open({str(tmp_path / 'log')!r}, 'a'))\n    return create()\n"
        )
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
        monkeypatch.setenv("FLASK_SQLA_JOBS_HEARTBEAT", "0.2")
        monkeypatch.setenv("FLASK_SQLA_JOBS_LOG_FORMAT", "json")
        program, *options = command
        process = start(program, "counted:create_app()", *options)
        if not options:
            wait_until(lambda: _count(session, shop.jobs.Process) == 1)
            process.terminate()
        _, err = process.communicate(timeout=30)
        assert (process.returncode, tmp_path.joinpath("log").read_text()) == (0, "loaded\n"), err
        assert [json.loads(line)["level"] for line in err.splitlines()], "the config says how it logs"

    def test_settings_that_do_not_fit_together_are_told(
        self, shop: Shop, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FLASK_SQLA_JOBS_LEASE", "1")
        for program in ("sqla_jobs.worker", "sqla_jobs.clock"):
            process = start(program, "tests.flask_shop:create_app()")
            _, err = process.communicate(timeout=30)
            assert (process.returncode, "Traceback" in err) == (2, False), err
            assert "lease" in err
        process = start("sqla_jobs.worker", "tests.flask_shop:create_app()", "--heartbeat", "0.2", "--drain")
        assert (process.communicate(timeout=30)[0], process.returncode) == ("0 runs\n", 0)

    def test_a_setting_that_is_none_is_told(self, shop: Shop, flask: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FLASK_SQLA_JOBS_THREADS", "8")
        for command in ("worker", "status"):
            code, _, err = flask(command)
            assert (code, err.count("\n")) == (1, 1)
            assert "unknown setting app.config['SQLA_JOBS_THREADS']; valid settings: SQLA_JOBS_CLOCK, " in err

    def test_an_application_that_is_not_there_is_told(self, shop: Shop, flask: Run) -> None:
        for command in ("worker", "status"):
            code, _, err = flask(command, app="tests.no_shop")
            assert (code, "Could not import 'tests.no_shop'" in err, "Traceback" in err) == (1, True, False)

    def test_another_database_is_refused(self, shop: Shop, start: Start, flask: Run) -> None:
        url = "postgresql+psycopg://localhost/other"
        for command in ("worker", "status"):
            code, _, err = flask(command, "--database-url", url)
            assert (code, "--database-url: this application opens its sessions itself" in err) == (1, True)

    def test_help_needs_no_application(self, shop: Shop, flask: Run) -> None:
        code, out, _ = flask("worker", "--help", app="tests.no_shop")
        assert (code, "--queues" in out) == (0, True)

    def test_the_program_of_an_application_has_the_commands_too(
        self, shop: Shop, session: Session, tmp_path: Path
    ) -> None:
        tmp_path.joinpath("shopctl.py").write_text(
            "from flask.cli import FlaskGroup\n"
            "from tests.flask_shop import create_app\n"
            "if __name__ == '__main__':\n"
            "    FlaskGroup(create_app=create_app)()\n"
        )
        shop.jobs.tasks["record"].enqueue(session, n=1)
        session.commit()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        for arguments, said in ((["status"], "default "), (["worker", "--drain"], "1 run\n")):
            command = [sys.executable, str(tmp_path / "shopctl.py"), "jobs", *arguments]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
            assert said in done.stdout


def test_a_factory_that_no_other_process_can_import_is_refused() -> None:
    from click.testing import CliRunner

    group = FlaskGroup(create_app=lambda: Flask("shop"))
    info = ScriptInfo(create_app=lambda: Flask("shop"))
    result = CliRunner().invoke(group, ["jobs", "worker"], obj=info)
    assert result.exit_code == 1
    assert "worker processes cannot import" in result.output


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


def test_flask_migrate_makes_and_checks_the_tables(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.joinpath("app.py").write_text(MIGRATED)
    monkeypatch.setenv("SHOP_URL", database_url)

    def flask(*arguments: str) -> str:
        command = [sys.executable, "-m", "flask", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    flask("db", "init")
    flask("db", "migrate")
    import_as_old_alembics_forget_to(tmp_path / "migrations")
    flask("db", "upgrade")
    assert "No new upgrade operations detected" in flask("db", "check")
    code = "import app; c = app.app.app_context(); c.push(); app.order.enqueue(app.db.session); app.db.session.commit()"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=60, check=True)
    assert flask("jobs", "worker", "--drain", "--log-level", "ERROR") == "1 run\n"
    flask("db", "downgrade")


@pytest.mark.parametrize("folder", ["migrations", "database/history"])
def test_a_revision_joins_the_history_of_flask_migrate(
    folder: str, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.joinpath("app.py").write_text(MIGRATED.replace("Migrate(app, db)", f"Migrate(app, db, {folder!r})"))
    monkeypatch.setenv("SHOP_URL", database_url)

    def flask(*arguments: str) -> str:
        command = [sys.executable, "-m", "flask", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    flask("db", "init")
    assert f"written: {tmp_path / folder / 'versions'}" in flask("jobs", "migrate", "--revision")
    flask("db", "upgrade")
    assert "nothing to write" in flask("jobs", "migrate", "--revision")
    flask("db", "migrate", "-m", "orders")
    flask("db", "upgrade")
    assert "No new upgrade operations detected" in flask("db", "check")
    assert "the tables are those of version" in flask("jobs", "check")


def test_the_way_of_the_docs_with_flask_migrate_works(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.joinpath("app.py").write_text(MIGRATED)
    monkeypatch.setenv("SHOP_URL", database_url)
    page = ROOT.joinpath("docs/flask.md").read_text(encoding="utf-8").partition("## With Flask-Migrate")[2]
    settings, commands = re.findall(r"```(?:ini|sh)\n(.*?)```", page, re.DOTALL)

    def flask(*arguments: str) -> str:
        command = [sys.executable, "-m", "flask", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    flask("db", "init")
    ini = tmp_path / "migrations/alembic.ini"
    if not READS_TOML:  # an older Alembic, and what the page says for one
        settings = (
            "version_path_separator = space\nversion_locations = %(here)s/versions sqla_jobs:migrations/versions\n"
        )
    ini.write_text(ini.read_text().replace("[alembic]\n", f"[alembic]\n{settings}", 1))
    for command in commands.splitlines():
        flask(*command.split()[1:])
    assert "No new upgrade operations detected" in flask("db", "check")
    assert len(list(tmp_path.glob("migrations/versions/*.py"))) == 3
