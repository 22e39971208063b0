"""docs/architecture.md and docs/decisions name only what is there: packages, files, threads, locks, timers, tests."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import sqla_jobs
from tests.conftest import ROOT
from tests.project.test_floors import FLOORS

PAGE = ROOT.joinpath("docs/architecture.md").read_text(encoding="utf-8")
PACKAGE = Path(sqla_jobs.__file__).parent
DECISIONS = [page.read_text(encoding="utf-8") for page in ROOT.glob("docs/decisions/*.md")]
NAMING = "".join([PAGE, *DECISIONS])
_PROMISED = re.findall(r"^\| \*\*(.+?)\*\* \|", ROOT.joinpath("README.md").read_text(encoding="utf-8"), re.MULTILINE)
_NAME = re.compile(r'"([^"]+)"').findall
SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}


def section(title: str) -> str:
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_packages_are_listed_from_the_top() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", section("The packages"), re.MULTILINE)
    assert listed == [name for name in reversed(FLOORS) if name != "__main__"]


def test_each_promise_of_the_readme_has_its_row() -> None:
    listed = re.findall(r"^\| (\w[^|]+?) \|", section("Promises, and what keeps them"), re.MULTILINE)
    assert listed == ["promise", *_PROMISED]


def test_each_promise_is_shown_with_real_processes_by_a_test_of_make_test() -> None:
    tests = [path.read_text(encoding="utf-8") for path in ROOT.glob("tests/*/test_*.py")]
    shown = {name for text in tests for names in re.findall(r"mark\.promise\(([^)]+)", text) for name in _NAME(names)}
    assert shown == set(_PROMISED)


def test_each_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/(?:\w+/)?test_\w+\.py)::(test_\w+)`", NAMING)
    assert named
    missing = [name for path, name in named if f"def {name}(" not in ROOT.joinpath(path).read_text(encoding="utf-8")]
    assert missing == []


def test_each_module_of_tests_that_a_page_names_exists() -> None:
    pages = [page.read_text(encoding="utf-8") for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))]
    named = set(re.findall(r"tests/[\w/]+\.py", "".join(pages)))
    assert named
    assert [path for path in sorted(named) if not ROOT.joinpath(path).exists()] == []


def test_each_file_that_is_named_exists() -> None:
    named = set(re.findall(r"(?<![\w/])(?!tests/)((?:\w+/)+\w+\.py)", NAMING))
    assert named
    assert named - SOURCES.keys() == set()


def test_each_thread_has_its_row() -> None:
    started = {name for text in SOURCES.values() for name in re.findall(r'name=f?"(sqla_jobs-[\w-]+)"', text)}
    listed = set(re.findall(r"`(sqla_jobs-[a-z0-9-]+)`", PAGE))
    assert listed == started
    assert "`sqla_jobs-QUEUE-N`" in PAGE


def test_each_lock_that_is_named_exists() -> None:
    for owner, name in set(re.findall(r"`(\w+)\.(_lock|_\w*ing)`", PAGE)):
        text = next(text for text in SOURCES.values() if f"class {owner}" in text)
        assert re.search(rf"self\.{name} = threading\.R?Lock\(\)", text), f"{owner}.{name}"


def test_the_timers_are_those_of_the_code() -> None:
    named = re.findall(r"\| `([\w.]+)\.(_?[A-Z_]+)` \| ([\d.]+) \|", section("The timers of the claim loop"))
    assert len(named) == 11
    for module, name, seconds in named:
        assert getattr(import_module(f"sqla_jobs.{module}"), name) == float(seconds), name


def test_each_statement_has_its_row() -> None:
    listed = set(re.findall(r"\]\(sql/(\w+)\.sql\)", section("The statements")))
    assert listed == {path.stem for path in ROOT.glob("docs/sql/*.sql")}
