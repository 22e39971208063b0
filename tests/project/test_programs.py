"""Programs that tests drive are found, or installed, or said to be missing in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import programs
from tests.conftest import ROOT
from tests.helpers import wait_until
from tests.programs import BROWSER, Program

pytestmark = pytest.mark.slow
APT = """
case "$*" in
  *update*) touch {folder}/updated ;;
  *install*sqla-jobs-tool) test -e {folder}/updated || {{ echo "E: Unable to locate package"; exit 100; }}
    printf '#!/bin/sh\\n' > {folder}/tool; chmod 755 {folder}/tool ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first folder of the PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def put(folder: Path, name: str, script: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_the_first_name_that_runs_is_found_and_not_a_shim_that_refuses(folder: Path) -> None:
    put(folder, "tool-browser", "echo 'requires the snap to be installed' >&2; exit 1")
    real = put(folder, "tool-stable", "exit 0")
    assert Program("sqla-jobs-tool", ("tool", "tool-browser", "tool-stable")).find() == real


def test_root_installs_what_is_missing_after_an_update_where_that_is_needed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    put(folder, "apt-get", APT.format(folder=folder))
    assert Program("sqla-jobs-tool", ("tool",)).get() == str(folder / "tool")
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "is missing" not in line] == ["E: Unable to locate package"]
    assert [line.split()[3:5] for line in said if "is missing" in line] == [
        ["apt-get", "install"],
        ["apt-get", "update"],
        ["apt-get", "install"],
    ]


def test_nobody_but_root_is_offered_what_only_root_may_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert list(Program("sqla-jobs-tool", ("tool",)).ways()) == []
    assert [command[1:] for command in BROWSER.ways()] == [["-m", "playwright", "install", "chromium"]]


def test_what_cannot_be_had_is_one_line_with_its_remedy(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = Program("sqla-jobs-tool", ("tool",))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(programs, "BROWSER", nothing)
    monkeypatch.setattr(programs, "PGBOUNCER", Program("sh", ("sh",)))
    put(folder, "sh", "exit 0")
    programs.main()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "Tests that need sqla-jobs-tool are left out. Install sqla-jobs-tool with the system's package manager "
        "(Debian: apt-get install sqla-jobs-tool).\n"
    )


def test_an_installer_that_answers_nothing_is_given_up_with_all_that_it_started(tmp_path: Path) -> None:
    child = tmp_path / "child"
    complaint = programs.run(["sh", "-c", f"sleep 600 & echo $! > {child}; wait"], deadline=1)
    assert complaint == "sh did not end within 1 s."
    command = Path(f"/proc/{child.read_text().strip()}/cmdline")
    wait_until(lambda: not command.exists() or not command.read_bytes(), message="the child goes on")


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 1)])
def test_without_a_browser_its_tests_are_skipped_with_one_line_and_fail_where_ci_is_true(
    tmp_path: Path, ci: str, code: int
) -> None:
    environment = os.environ | {"PATH": str(tmp_path), "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path), "CI": ci}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/dashboard/test_browser.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    said = [line for line in done.stdout.splitlines() if "-m playwright install chromium" in line]
    assert done.returncode == code, done.stdout + done.stderr
    if ci:
        assert "chromium is missing." in done.stdout
    else:
        assert len(said) == 1, done.stdout
        assert said[0].startswith("SKIPPED")
