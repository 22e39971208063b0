"""The documentation as a whole: it builds, and nothing in it leads nowhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sqla_jobs.tasks.enqueue import EnqueueOptions
from tests.conftest import ROOT
from tests.project.test_public_names import PUBLIC

pytestmark = pytest.mark.slow


def test_it_builds_without_a_warning_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", "-d", str(tmp_path / "trees")]
    done = subprocess.run(
        [*command, "docs", str(tmp_path / "html")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    reference = tmp_path.joinpath("html/reference.html").read_text()
    described = set(re.findall(r'id="(sqla_jobs\.[\w.]+)"', reference))
    elsewhere = {"sqla_jobs.flask", "sqla_jobs.pyramid", "sqla_jobs.dashboard", "sqla_jobs.pytest_plugin"}
    public = {f"{module}.{name}" for module in PUBLIC.keys() - elsewhere for name in PUBLIC[module]}
    assert public - described == set()
    fields = {f"sqla_jobs.RunContext.{name}" for name in ("job_id", "attempt", "deadline", "remaining", "progress")}
    options = {f"sqla_jobs.EnqueueOptions.{name}" for name in EnqueueOptions.__annotations__}
    assert (fields | options | {"sqla_jobs.Task.enqueue", "sqla_jobs.JobMixin.run_at"}) - described == set()
    assert {name for name in described if "__" in name} == set()


def test_files_that_pages_of_the_repository_link_to_are_there() -> None:
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
