"""The public CI and `.ci/run` do the same: they call `make`, and nothing else."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from typing import Any

import yaml

from tests.conftest import ROOT

WORKFLOW: dict[str, Any] = yaml.safe_load(ROOT.joinpath(".github/workflows/ci.yaml").read_text(encoding="utf-8"))
TARGETS = set(re.findall(r"^([a-z-]+):", ROOT.joinpath("Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def made(command: str) -> set[str]:
    """The targets of a call of make; its variables are left out."""
    program, *words = shlex.split(command)
    assert program == "make", command
    return {word for word in words if "=" not in word}


def called_by_the_workflow() -> set[str]:
    steps = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
    return {target for step in steps if "run" in step for target in made(step["run"])}


def called_by_ci_run() -> set[str]:
    script = ROOT.joinpath(".ci/run").read_text(encoding="utf-8")
    return {target for call in re.findall(r'^step "[^"]+" (.+)$', script, re.MULTILINE) for target in made(call)}


def test_the_workflow_calls_targets_that_exist_and_those_of_ci_run() -> None:
    assert called_by_the_workflow() == called_by_ci_run()
    assert called_by_the_workflow() <= TARGETS


def test_it_runs_on_each_supported_python_and_postgresql() -> None:
    project = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
    tried = [name.rpartition(" ")[2] for name in project["classifiers"] if "Python :: 3." in name]
    pythons = WORKFLOW["jobs"]["python"]["strategy"]["matrix"]["python"]
    assert set(tried) <= set(pythons)
    assert f"| Python | {', '.join(tried)} |" in ROOT.joinpath("RELEASING.md").read_text(encoding="utf-8")
    assert project["requires-python"] == f">={pythons[0]}"
    assert WORKFLOW["jobs"]["postgresql"]["strategy"]["matrix"]["postgresql"] == [str(n) for n in range(14, 19)]


def test_pre_commit_formats_with_the_ruff_of_a_repository_and_no_two_hooks_are_one() -> None:
    configured = yaml.safe_load(ROOT.joinpath(".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook["id"] for repo in configured["repos"] for hook in repo["hooks"]]
    assert hooks == ["end-of-file-fixer", "trailing-whitespace", "ruff-check", "ruff-format"]


def test_the_oldest_dependencies_are_the_bounds_of_the_package_and_the_readme_states_them() -> None:
    project = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["flask"], *extras["opentelemetry"]]
    bounds = dict(re.findall(r"^([\w-]+)>=([\d.]+)$", "\n".join(wanted), re.MULTILINE))
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", ROOT.joinpath(".ci/oldest.txt").read_text(), re.MULTILINE))
    assert len(bounds) == 12
    assert {name: pinned[name] for name in bounds} == {
        name: bound + ".0" * (2 - bound.count(".")) for name, bound in bounds.items()
    }
    readme = ROOT.joinpath("README.md").read_text(encoding="utf-8")
    for name in ("SQLAlchemy", "psycopg", "pydantic", "Alembic"):
        assert f"{name} {bounds[name.lower()]}" in readme


def test_what_is_tested_with_the_oldest_dependencies_exists() -> None:
    command = ["make", "--dry-run", "--directory", str(ROOT), "oldest"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    tested = set(re.findall(r"\stests/\S+", said))
    assert tested
    assert [path for path in sorted(tested) if not ROOT.joinpath(path.strip().rstrip('"')).exists()] == []
