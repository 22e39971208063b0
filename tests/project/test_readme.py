"""README and docs: every block of code in them is run as it is printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any, ClassVar

import click
import pytest
import yaml
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.orm import Session

from sqla_jobs.cli.main import main
from sqla_jobs.cli.naming import named_application
from sqla_jobs.cli.running import worker
from sqla_jobs.flask import cli as flask
from sqla_jobs.testing import make_job
from tests.application import Application
from tests.conftest import ROOT
from tests.helpers import run_to_end, wait_until
from tests.project.pages import WHAT_OTHERS_LACK, Block, blocks, run_block

pytestmark = pytest.mark.slow
DOCS = sorted(ROOT.glob("docs/*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *DOCS]


def run_python(folder: Path, *arguments: str) -> str:
    """Run `python …` in that folder to its good end, and return what it prints."""
    done = run_to_end([sys.executable, *arguments], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_quick_start_runs_as_printed(shop: Path) -> None:
    done = run_to_end([sys.executable, "shop.py"])
    assert (done.stdout, done.stderr, done.returncode) == ("settled\n", "", 0)


@pytest.mark.parametrize(
    "name",
    [
        *("arguments", "coming-from-others", "coroutines", "encryption", "hooks", "idempotency", "limits"),
        *("monitoring", "recipes", "retries", "schedules", "steps", "tasks", "transactions", "unique", "workers"),
    ],
)
def test_the_python_of_a_page_runs_as_printed(name: str, page: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks(ROOT / f"docs/{name}.md", "python"):
        run_block(block, page)
    assert not capsys.readouterr().err


def test_what_others_lack_runs_as_printed(page: ModuleType, engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    own = "from shop import *\nsent = []\nsend = sent.append\ndef write(post: int) -> str: return f'post {post}'"
    exec(own, vars(page))
    for block in WHAT_OTHERS_LACK:
        run_block(block, page)
    assert "waits for the signal 'approved'" in capsys.readouterr().out
    known: Any = vars(page)
    known["jobs"].worker(bind=engine).drain()
    assert known["sent"] == ["post 17"]
    assert known["post"].state == "succeeded"


def test_the_log_and_the_status_of_a_first_job_are_those_of_the_readme(page: ModuleType, database_url: str) -> None:
    (shown,) = blocks(ROOT / "README.md", "text")
    session: Any = vars(page)["session"]
    shop: Any = sys.modules["shop"]
    session.add(order := shop.Order())
    shop.settle.enqueue(session, order=order)
    session.commit()
    environment = {**os.environ, "DATABASE_URL": database_url}
    run, status = (shlex.split(line)[2:] for line in shown.code.splitlines() if line.startswith("$ "))
    seen = ""
    for arguments in ([*run, "--drain"], ["-m", "sqla_jobs", *status]):
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True)
        seen += done.stdout + done.stderr
    for line in shown.code.splitlines():
        if not line.startswith("$ "):
            assert _without_numbers(line) in map(_without_numbers, seen.splitlines())


def _without_numbers(line: str) -> str:
    """A line but for times and process ids, and for how wide a table is set."""
    return re.sub(r"[\d.,:-]+", "0", " ".join(line.split()))


def test_the_application_of_several_modules_works(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    modules: list[str] = []
    for block in blocks(ROOT / "docs/several-modules.md", "python"):
        path = tmp_path / block.code.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(block.code, encoding="utf-8")
        modules.append(f"bookshop.{path.stem}")

    python = partial(run_python, tmp_path)
    for module in modules:  # each may be imported first
        python("-c", f"import {module}")
    engine = "from sqlalchemy import create_engine; import os; engine = create_engine(os.environ['DATABASE_URL']); "
    session = f"{engine}from sqlalchemy.orm import Session; session = Session(engine); "
    python("-c", engine + "from bookshop.models import Base; Base.metadata.create_all(engine)")
    settled = "from bookshop.models import Order; from bookshop.billing import settle; session.add(one := Order()); "
    python("-c", f"{session}{settled}settle.enqueue(session, order=one); session.commit()")
    paid = "from bookshop.models import Order; session.add(one := Order()); session.flush(); one.pay(session)"
    python("-c", f"{session}{paid}; session.commit()")
    assert python("-m", "sqla_jobs.worker", "bookshop.models:jobs", "--drain") == "4 runs\n"


class _Partner(BaseHTTPRequestHandler):
    """Takes what the application of docs/fastapi.md announces."""

    keys: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.keys.append(self.headers["Idempotency-Key"])
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002 - as it is named there


@pytest.fixture
def partner() -> Iterator[str]:
    """The URL of one."""
    _Partner.keys.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Partner) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_web_server_of_the_docs_runs_jobs(
    page: ModuleType, shop: Path, engine: Engine, database_url: str, partner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastapi.testclient import TestClient

    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("PARTNER_URL", partner)
    write_modules("fastapi", shop)
    web = import_module("web")

    def status(order: int) -> Any:
        with engine.connect() as connection:
            return connection.scalar(text("SELECT status FROM orders WHERE id = :id"), {"id": order})

    with TestClient(web.app) as client:
        order = client.post("/orders").json()["order"]
        wait_until(lambda: status(order) == "announced")
    assert _Partner.keys == [f"order-{order}"]
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM sqla_processes")) == 0
    del sys.modules["web"]


def write_modules(name: str, folder: Path) -> None:
    """Write each block of a page into the file that its first line names; some continue the file of another block."""
    code: dict[str, str] = {}
    for block in blocks(ROOT / f"docs/{name}.md", "python"):
        file = block.code.splitlines()[0].removeprefix("# ").removesuffix(", continued")
        code[file] = code.get(file, "") + block.code
    code.setdefault("conftest.py", blocks(ROOT / "docs/testing.md", "python")[0].code)
    for file, text_ in code.items():
        folder.joinpath(file).write_text(text_, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "passed"),
    [
        ("testing", 5),
        ("testing-applications", 2),
        ("sqlmodel", 1),
    ],
)
def test_the_tests_of_a_page_pass(
    name: str, passed: int, shop: Path, server_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    if name == "testing":
        begin_history(shop, database_url, "generic").alembic("revision", "--autogenerate", "-m", "tables")
    monkeypatch.setenv("DATABASE_URL", server_url)
    write_modules(name, shop)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "."]
    command += ["-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:faker"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{passed} passed" in done.stdout


def test_the_flask_applications_of_the_docs_work(
    tmp_path: Path, database_url: str, engine: Engine, server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_modules("flask", tmp_path)
    monkeypatch.setenv("DATABASE_URL", server_url)

    python = partial(run_python, tmp_path)
    assert "1 passed" in python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", ".")
    monkeypatch.setenv("FLASK_SQLALCHEMY_DATABASE_URI", database_url)
    in_shop = "from shop import *; app = create_app(); "
    python("-c", in_shop + "app.app_context().push(); db.create_all()")
    python("-c", in_shop + "c = app.test_client(); c.post('/orders')")
    assert python("-m", "flask", "--app", "shop", "jobs", "worker", "--concurrency", "8", "--drain") == "1 run\n"
    with engine.connect() as connection:
        assert list(connection.scalars(text('SELECT status FROM "order"'))) == ["settled"]


def test_the_sql_of_the_docs_enqueues(page: ModuleType, engine: Engine) -> None:
    jobs: Any = vars(sys.modules["shop"])["jobs"]
    (simple, *more, look) = blocks(ROOT / "docs/other-languages.md", "sql")
    with Session(engine) as session:
        for block in (simple, *more, *more):
            session.execute(text(block.code))
        session.execute(
            text(
                "INSERT INTO sqla_jobs (task, args, state, run_at) "
                """VALUES ('settle', '{"order": 4}', 'queued', now() + interval '1 day')"""
            )
        )
        session.execute(text("INSERT INTO orders (id, status) SELECT n, 'new' FROM generate_series(1, 4) n"))
        session.commit()
        jobs.worker(bind=engine).drain()
        ended = select(jobs.Job.args["order"].as_integer()).where(jobs.Job.state == "succeeded")
        assert sorted(session.scalars(ended)) == [1, 3, 4]
        waiting = session.scalars(select(jobs.Job).where(jobs.Job.state == "scheduled")).all()
        assert [job.priority for job in waiting] == [-5, -5]
        states, runs = (session.execute(text(statement)).one() for statement in look.code.strip().split(";")[:2])
        assert (states.state, runs.outcome, runs.error) == ("succeeded", "succeeded", None)


def test_the_queries_of_the_docs_are_answered(page: ModuleType, engine: Engine) -> None:
    (block,) = blocks(ROOT / "docs/monitoring.md", "sql")
    jobs: Any = vars(sys.modules["shop"])["jobs"]
    with Session(engine) as session:
        make_job(session, jobs, task="settle")
        make_job(session, jobs, task="settle", state="failed")
        session.commit()
        waiting, failed, alive = (session.execute(text(one)).all() for one in block.code.strip().split(";")[:-1])
    assert [row[0] for row in waiting] == ["default"]
    assert failed == [("settle", 1)]
    assert alive == [(0,)]


@pytest.mark.parametrize("block", blocks(ROOT / "docs/cli.md", "toml"), ids=str)
def test_an_application_named_in_pyproject_is_found(block: Block, shop: Path) -> None:
    shop.joinpath("pyproject.toml").write_text(block.code)
    assert named_application(None) == "shop:jobs"


MIGRATIONS = ROOT / "docs/migrations.md"


def commands_of(block: Block) -> list[list[str]]:
    return [shlex.split(line) for line in block.code.splitlines()]


def begin_history(shop: Path, url: str, template: str) -> Application:
    """`alembic init` in the folder of the shop, and what the page says about env.py."""
    app = Application(shop, url)
    app.begin_history(template=template)
    env = shop / "alembic/env.py"
    by_page = blocks(MIGRATIONS, "python")[0].code
    env.write_text(env.read_text().replace("import shop\ntarget_metadata = shop.Base.metadata\n", f"{by_page}\n"))
    assert by_page in env.read_text()
    return app


@pytest.mark.parametrize("language", ["ini", "toml"])
def test_the_branch_of_the_docs_is_joined_with_an_empty_history(language: str, shop: Path, database_url: str) -> None:
    app = begin_history(shop, database_url, {"ini": "generic", "toml": "pyproject"}[language])
    (settings,) = blocks(MIGRATIONS, language)
    path = shop / {"ini": "alembic.ini", "toml": "pyproject.toml"}[language]
    kept = re.sub(r"^(path_separator|version_locations) *=.*\n", "", path.read_text(), flags=re.MULTILINE)
    heading = settings.code.splitlines()[0]
    assert kept.count(f"{heading}\n") == 1
    path.write_text(kept.replace(f"{heading}\n", settings.code))
    start, join, *_ = blocks(MIGRATIONS, "sh")
    for program, *arguments in (*commands_of(start), *commands_of(join)):
        assert program == "alembic"
        app.alembic(*arguments)
    app.alembic("revision", "--autogenerate", "-m", "orders")
    app.alembic("upgrade", "head")
    assert "No new upgrade operations" in app.alembic("check")
    assert len(app.revisions()) == 3
    app.alembic("downgrade", "sqla_jobs@base")


def test_the_other_ways_of_the_docs_make_the_tables(
    shop: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    app = begin_history(shop, database_url, "generic")
    _, _, own, direct, check = blocks(MIGRATIONS, "sh")
    for program, *arguments in (*commands_of(direct), *commands_of(check)):
        assert program == "sqla-jobs"
        subprocess.run([sys.executable, "-m", "sqla_jobs", *arguments], check=True)
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    engine.dispose()
    for program, *arguments in commands_of(own):
        assert program == "alembic"
        app.alembic(*arguments)
    (written,) = app.revisions()
    written.write_text(written.read_text().partition("def upgrade")[0] + blocks(MIGRATIONS, "python")[1].code)
    app.alembic("upgrade", "head")
    app.sqla_jobs("migrate", "shop:jobs", "--check")


def test_the_commands_of_the_docs_are_accepted_with_their_options() -> None:
    """They are parsed: tests of each command run it."""
    programs: dict[tuple[str, ...], click.Command] = {
        ("sqla-jobs",): main,
        ("python", "-m", "sqla_jobs"): main,
        ("python", "-m", "sqla_jobs.worker"): worker,
        ("python", "-m", "sqla_jobs.clock"): worker,
        ("flask", "--app", "shop", "jobs"): flask,
    }
    lines = {line for page in PAGES for block in blocks(page, "sh") for line in block.code.splitlines()}
    parsed = 0
    for line in sorted(lines):
        words = shlex.split(line, comments=True)
        for program, command in programs.items():
            if tuple(words[: len(program)]) == program:
                parse(command, words[len(program) :])
                parsed += 1
    assert parsed > 20


def parse(command: click.Command, arguments: list[str]) -> None:
    """Raise an error about arguments that the command does not take."""
    context = None
    while isinstance(command, click.Group):
        context = click.Context(command, context)
        command = command.get_command(context, arguments[0]) or pytest.fail(f"there is no command {arguments[0]}")
        arguments = arguments[1:]
    command.make_context("command", list(arguments), context)


def test_every_block_of_yaml_can_be_read() -> None:
    for block in (block for page in PAGES for block in blocks(page, "yaml")):
        assert yaml.safe_load(block.code), block
