"""Mutation testing of the pure rules: `python -m tests.mutants.rules [MODULE …]`, or `make mutants`.

mutmut makes the mutants: a module has all of them beside each function, and one is chosen when the function is called.
Before the first trial the tests run once, unchanged, and which of them call which function is written down.
Verdicts are kept in build/mutants/rules.jsonl: what was tried is not tried again.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

import pytest
from mutmut.mutation import trampoline  # pyright: ignore[reportMissingImports, reportUnknownVariableType]
from mutmut.mutation.file_mutation import (  # pyright: ignore[reportMissingImports]
    mutate_file_contents,  # pyright: ignore[reportUnknownVariableType]
)

if TYPE_CHECKING:
    from tests.mutants.trial import Trials
    from tests.mutants.verdicts import Place

ROOT = Path(__file__).parent.parent.parent
HERE = ROOT / "build/mutants"
_PACKAGE = "sqla_jobs.rules"
_LEFT_OUT = "benchmarks dashboard/test_browser.py project reference processes supervisor"
"""Tests of other processes, which have no mutants, and of the repository."""


class Mutated(SourceFileLoader):
    """Loads a module of rules with all its mutants."""

    functions: dict[str, dict[str, str]] = {}  # noqa: RUF012 - that of all modules
    """By the name of a function: its source, and that of each mutant by its name."""

    def get_code(self, fullname: str) -> CodeType:
        mutated = mutate_file_contents(self.path, self.get_data(self.path).decode())
        for name, source in _sources(ast.parse(mutated.code), mutated.code):
            function = name.partition("__mutmut_")[0]
            self.functions.setdefault(f"{fullname}.{function}", {})[name] = source
        code: CodeType = compile(mutated.code, self.path, "exec", dont_inherit=True)
        return code


class _Finder:
    @staticmethod
    def find_spec(name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        if not name.startswith(f"{_PACKAGE}."):
            return None
        file = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        return spec_from_file_location(name, file, loader=Mutated(name, str(file)))


def _sources(tree: ast.AST, code: str) -> Iterator[tuple[str, str]]:
    lines = code.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and "__mutmut_" in node.name:
            yield node.name, "\n".join(lines[node.lineno : node.end_lineno])  # without the name


def mutants() -> dict[Place, str]:
    """The name of each mutant."""
    from tests.mutants.verdicts import Place

    found: dict[Place, str] = {}
    for function, sources in Mutated.functions.items():
        own = next(source for name, source in sources.items() if name.endswith("__mutmut_orig"))
        for name, source in sources.items():
            if not name.endswith("__mutmut_orig"):
                change, nth = _change(own, source), 0
                short = function.removeprefix(f"{_PACKAGE}.")
                while (place := Place(short, change, nth)) in found:
                    nth += 1
                found[place] = f"{function.rpartition('.')[0]}.{name}"
    return found


def _change(own: str, other: str) -> str:
    lines = [*difflib.ndiff(own.splitlines(), other.splitlines())]
    return " ".join(" ".join((line[0], *line[2:].split())) for line in lines if line[0] in "+-")


class _Recording:
    """A pytest plugin that writes down which tests call which function, and how long they take."""

    def __init__(self) -> None:
        self._tests: defaultdict[str, set[str]] = defaultdict(set)
        self._took: dict[str, tuple[float, bool]] = {}
        self._current: list[str] = []
        trampoline.record_trampoline_hit = self._hit
        trampoline.set_mutant_under_test("stats")

    def _hit(self, name: str, caller: str | None = None) -> None:
        self._tests[name.removeprefix(f"{_PACKAGE}.")].update(self._current)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._current[:] = [nodeid]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        before, _ = self._took.get(item.nodeid, (0.0, False))
        self._took[item.nodeid] = before + call.duration, item.get_closest_marker("slow") is not None
        return (yield)

    def pytest_sessionfinish(self) -> None:
        found = {"tests": {name: sorted(tests) for name, tests in self._tests.items()}, "took": self._took}
        HERE.mkdir(parents=True, exist_ok=True)
        HERE.joinpath("rules.json").write_text(json.dumps(found), encoding="utf-8")


def _record() -> None:
    """Run the fast tests once, unchanged."""
    if (child := os.fork()) == 0:
        left_out = [f"--ignore=tests/{path}" for path in _LEFT_OUT.split()]
        options = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist", "--assert=plain"]
        os._exit(int(pytest.main([*options, "tests", *left_out], plugins=[_Recording()])))
    if os.waitpid(child, 0)[1] != 0:
        HERE.joinpath("rules.json").unlink(missing_ok=True)
        raise SystemExit("the tests fail without a mutant")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.rules", description=__doc__)
    parser.add_argument("modules", nargs="*", help="such as retry; all where none is named")
    parser.add_argument("--survivors", action="store_true", help="try those again that survived")
    parser.add_argument("--seconds", type=float, default=30, help="seconds of tests for a mutant (%(default)s)")
    given = parser.parse_args(arguments)
    sys.meta_path.insert(0, _Finder)

    from sqla_jobs.postgres import local_postgres, memory
    from tests.mutants.trial import with_tests
    from tests.mutants.verdicts import Recorded, Verdicts

    if not HERE.joinpath("rules.json").exists():
        _record()
    found = json.loads(HERE.joinpath("rules.json").read_text(encoding="utf-8"))
    recorded = Recorded()
    recorded.add(found["tests"], found["took"])
    verdicts = Verdicts(HERE / "rules.jsonl")
    names = mutants()
    by_function: defaultdict[str, list[Place]] = defaultdict(list)
    for place in names:
        if not given.modules or place.statement.partition(".")[0] in given.modules:
            by_function[place.statement].append(place)

    def try_all(trials: Trials) -> None:
        for of_it in by_function.values():
            wanted = verdicts.wanted(of_it, survivors=given.survivors)
            verdicts.try_all(trials, recorded, wanted, plant, first="tests/rules", seconds={"fast": given.seconds})

    def plant(place: Place) -> None:
        trampoline.set_mutant_under_test(names[place])

    tests = {test for function in by_function for test in recorded.tests.get(function, ())}
    with local_postgres(temporary=memory()) as url:
        os.environ["DATABASE_URL"] = url
        with_tests(tests, url, str(HERE / "last.log"), try_all)
    for function, of_it in by_function.items():
        verdicts.tell(function, of_it)


if __name__ == "__main__":
    main()
