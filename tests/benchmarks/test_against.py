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


def test_each_kind_of_job_is_beside_the_same_of_the_commit_and_has_its_bound(database_url: str) -> None:
    done = outcome(database_url, "--against", FASTEST, "--turns", "1", "--jobs", "2000", "--at-most", "0.01")
    assert done.returncode == 1, done.stdout + done.stderr
    kinds = re.findall(r"^(\S+): CPU of the worker", done.stdout, re.MULTILINE)
    each = ["plain", "transactional", "limited", "coroutine"]
    assert kinds == [kind for kind in each for _ in range(2)], "what is above the bound is measured once more"
    said = ", ".join(f"{kind}: CPU of the worker" for kind in each)
    assert done.stderr == f"Error: more than 0.01 times that of {FASTEST[:10]}: {said}\n"


def test_a_commit_that_is_not_there_is_named_with_the_remedy(database_url: str) -> None:
    done = outcome(database_url, "--against", "0123456")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: '0123456' is no commit of the repository")
    assert "git fetch --unshallow" in done.stderr
