"""Every example is run as a newcomer runs it, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.conftest import ROOT
from tests.helpers import run_to_end

pytestmark = pytest.mark.slow
MARK = "SQLA_JOBS_EXAMPLE"


@pytest.fixture
def environment() -> dict[str, str]:
    """For one example: without DATABASE_URL, and with a mark by which all that it starts is found again."""
    return {name: value for name, value in os.environ.items() if name != "DATABASE_URL"} | {MARK: uuid.uuid4().hex}


def left_behind(environment: dict[str, str]) -> list[str]:
    """Processes with the mark. (None are seen where no /proc is.)"""
    mark, found = f"{MARK}={environment[MARK]}", list[str]()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            if mark in process.joinpath("environ").read_text(errors="replace"):
                found.append(process.joinpath("cmdline").read_text().replace("\0", " "))
    return found


def run(command: list[str], environment: dict[str, str], timeout: float = 100) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def test_the_crawler_fetches_each_page_once_and_breaks_no_rule_of_a_site(environment: dict[str, str]) -> None:
    done = run([sys.executable, "-m", "examples.crawler"], environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert "72 of 72 pages" in done.stdout
    assert "at most 4 requests at once" in done.stdout
    assert "VIOLATED" not in done.stdout
    assert left_behind(environment) == []


def test_the_agent_calls_and_uses_each_tool_once_while_its_workers_are_killed(environment: dict[str, str]) -> None:
    done = run([sys.executable, "-m", "examples.agent"], environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert left_behind(environment) == []
    assert done.stdout.count("kill -9") == 2
    assert "May I use the tool 'refund'?" in done.stdout
    assert re.findall(r"^  +(ok|FAILED)  (.*?)  +(.*)", done.stdout, re.MULTILINE)[:2] == [
        ("ok", "each call and each tool has one line", "call 1, tool 1, call 2, tool 2, call 3, tool 3, call 4"),
        ("ok", "the bill is what the answer says", "57 and 57 tokens"),
    ]


def test_the_example_works_by_the_commands_of_its_readme(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASK_APP", "examples.flask_shop")
    monkeypatch.setenv("FLASK_SQLALCHEMY_DATABASE_URI", database_url)

    def flask(*arguments: str) -> str:
        done = run_to_end([sys.executable, "-m", "flask", *arguments], ROOT)
        assert done.returncode == 0, done.stderr
        return done.stdout

    flask("db", "upgrade")
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO \"order\" VALUES (1, 'Tea', 'ada@example.com', 9.5, 'paid')")
        connection.exec_driver_sql("INSERT INTO sqla_jobs (task, args) VALUES ('settle', '{\"order\": 1}')")
    assert flask("jobs", "worker", "--drain") == "2 runs\n"
    flask("jobs", "schedule", "sync")
    assert re.search(
        r"^close-day +close_day +5 0 \* \* \* +Europe/Paris ", flask("jobs", "schedule", "list"), re.MULTILINE
    )
    assert "/orders/<int:number>/pay" in flask("routes")
