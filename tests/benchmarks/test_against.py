"""The comparison with another commit: it measures what that commit has, fails above its bound, and knows no others."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

FASTEST = ROOT.joinpath(".ci/fastest").read_text(encoding="utf-8").strip()


def outcome(database_url: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *options]
    environment = {**os.environ, "DATABASE_URL": database_url}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("at_most", "code"), [("100", 0), ("0.01", 1)])
def test_each_kind_of_job_is_beside_the_same_of_the_commit_and_has_its_bound(
    database_url: str, at_most: str, code: int
) -> None:
    done = outcome(database_url, "--against", FASTEST, "--turns", "1", "--jobs", "2000", "--at-most", at_most)
    assert done.returncode == code, done.stdout + done.stderr
    kinds = dict(re.findall(r"^(\S+): (CPU of the worker|left out)", done.stdout, re.MULTILINE))
    assert kinds.keys() == {"plain", "transactional", "limited", "coroutine"}
    assert kinds["plain"] == "CPU of the worker"
    said = ", ".join(f"{kind}: {found}" for kind, found in kinds.items() if found != "left out")
    assert done.stderr == (f"Error: more than 0.01 times that of {FASTEST[:10]}: {said}\n" if code else "")


def test_a_commit_that_is_not_there_is_named_with_the_remedy(database_url: str) -> None:
    done = outcome(database_url, "--against", "0123456")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: '0123456' is no commit of the repository")
    assert "git fetch --unshallow" in done.stderr
