"""Type checkers see the API as people do: right use passes, each mistake is refused where it is made."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.project.pages import MYPY

pytestmark = pytest.mark.slow
CASES = ROOT / "tests/typing"
REFUSED = CASES / "refused.py"
Errors = dict[str, dict[int, str]]
"""By name of the file and number of the line."""


def mypy() -> Errors:
    """What mypy --strict says."""
    files = [str(path) for path in sorted(CASES.glob("*.py"))]
    result = subprocess.run([*MYPY, *files], capture_output=True, text=True, check=False)
    assert result.returncode in (0, 1), result.stdout + result.stderr
    errors: Errors = {}
    for path, line, message in re.findall(r"^(.+\.py):(\d+): error: (.+)$", result.stdout, re.MULTILINE):
        errors.setdefault(Path(path).name, {})[int(line)] = message
    return errors


def pyright() -> Errors:
    """What pyright says in strict mode."""
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(CASES)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode in (0, 1), result.stdout + result.stderr
    report = json.loads(result.stdout[result.stdout.index("{") :])
    assert report["summary"]["filesAnalyzed"] >= len(list(CASES.glob("*.py"))), report["summary"]
    errors: Errors = {}
    for found in report["generalDiagnostics"]:
        if found["severity"] == "error":
            line = found["range"]["start"]["line"] + 1
            errors.setdefault(Path(found["file"]).name, {})[line] = found["message"]
    return errors


@pytest.mark.timeout(300)
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_applications_pass_the_strictest_checks_and_mistakes_are_refused_where_they_are_made(
    checker: Callable[[], Errors],
) -> None:
    errors = checker()
    found = errors.pop(REFUSED.name)
    assert errors == {}
    lines = REFUSED.read_text().splitlines()
    wanted = {number for number, line in enumerate(lines, start=1) if line.endswith("# error")}
    missed = [f"{number}: {lines[number - 1]}" for number in sorted(wanted - found.keys())]
    surplus = [f"{number}: {found[number]}" for number in sorted(found.keys() - wanted)]
    assert (missed, surplus) == ([], [])
