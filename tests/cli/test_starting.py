"""The start of commands: their imports, the names of their connections, and their exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from sqla_jobs.cli.main import main
from tests.conftest import ROOT

HEAVY = ("sqlalchemy", "psycopg", "pydantic", "alembic", "rich", "flask")

WRONG = [
    ["worker", "--processes", "0"],
    ["worker", "--log-level", "LOUD"],
    ["worker", "--queues", "mail=many"],
    ["worker", "--retention", "x=7d"],
    ["worker", "--retention", "audit=soon"],
    ["worker", "--clock-only", "--lease", "1"],
    ["worker", "--clock-only", "--log-level", "LOUD"],
    ["migrate", "--sql", "--citus"],
    ["dashboard", "--port", "70000"],
    ["schedule", "set", "x", "--task", "mark", "--cron", "61 * * * *", "--args", '{"n": 1}'],
]

Python = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def python(tmp_path: Path) -> Python:
    """Return a function that runs `python …` to its end, in an empty folder."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]], ids=" ".join)
def test_commands_without_an_application_import_no_library(python: Python, arguments: list[str]) -> None:
    program = (
        "import atexit, json, sys\n"
        "sys.argv[1:] = json.loads(sys.argv[1])\n"
        "atexit.register(lambda: print(json.dumps([*sys.modules]), file=sys.stderr))\n"
        "from sqla_jobs.cli.main import main\n"
        "main()\n"
    )
    done = python("-c", program, json.dumps(arguments))
    assert (done.returncode, "version 0." in done.stdout or "status" in done.stdout) == (0, True)
    assert [name for name in HEAVY if name in json.loads(done.stderr)] == []


@pytest.mark.parametrize(
    "command",
    [["enqueue", "mark", '{"n": 1}'], ["worker", "--drain", "--log-level", "WARNING"]],
    ids=lambda command: command[0],
)
@pytest.mark.slow
@pytest.mark.usefixtures("database")
def test_no_command_leaves_a_connection_open(python: Python, database_url: str, command: list[str]) -> None:
    strict = ("-X", "dev", "-W", "error", "-m", "sqla_jobs")
    done = python(*strict, *command, "--app", "tests.shop:jobs", DATABASE_URL=database_url)
    assert done.returncode == 0, done.stderr
    assert "ResourceWarning" not in done.stderr


class TestExitCodes:
    """2 is a wrong command line, 1 any other error."""

    @pytest.mark.usefixtures("database")
    def test_a_value_that_no_option_can_have_is_a_wrong_command_line(self, subtests: pytest.Subtests) -> None:
        for arguments in WRONG:
            with subtests.test(" ".join(arguments)):
                done = CliRunner().invoke(main, [*arguments, "--app", "tests.shop:jobs"])
                assert done.exit_code == 2, done.output

    @pytest.mark.usefixtures("database")
    def test_reloading_without_watchfiles_is_one_line_with_the_remedy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "watchfiles", None)
        done = CliRunner().invoke(main, ["worker", "--reload", "--app", "tests.shop:jobs"])
        assert (done.exit_code, 'pip install "sqla-jobs[reload]"' in done.output) == (1, True)
