"""What the project says about itself elsewhere leads somewhere: on a package index, and in messages."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import sqla_jobs
from sqla_jobs.rules.wording import REPOSITORY, page
from tests.conftest import ROOT

FILES = f"{REPOSITORY}/blob/main/"


def test_the_metadata_name_the_repository() -> None:
    project = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["urls"] == {
        "Documentation": page("index"),
        "Source": REPOSITORY,
        "Changelog": f"{FILES}CHANGELOG.md",
        "Issues": f"{REPOSITORY}/issues",
    }


def test_the_readme_links_by_address_as_a_package_index_needs_it() -> None:
    links = re.findall(r"\]\(([^)]+)\)", ROOT.joinpath("README.md").read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not link.startswith("https://")] == []


def test_files_of_the_repository_that_are_named_by_address_are_there() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("sqla_jobs/**/*.py")]
    named = {path for one in pages for path in re.findall(rf"{FILES}([\w./-]*\w)", one.read_text(encoding="utf-8"))}
    assert len(named) > 10
    assert [path for path in sorted(named) if not ROOT.joinpath(path).is_file()] == []


def test_messages_give_pages_by_address_since_an_installed_package_has_none() -> None:
    package = Path(sqla_jobs.__file__).parent
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                assert not re.search(r"docs/\w", node.value), f"{path}:{node.lineno}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "page":
                name = ast.literal_eval(node.args[0])
                assert ROOT.joinpath(f"docs/{name}.md").is_file(), f"{path}:{node.lineno}"
