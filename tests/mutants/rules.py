"""Mutation testing of the pure rules: `python -m tests.mutants.rules [MODULE …]`, or `make mutants`.

mutmut makes the mutants: a module has all of them beside each function, and one is chosen when the function is called.
The tests in tests/rules need no database. They are collected once, and run in a child process for each mutant.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import os
import pkgutil
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType

import pytest
from mutmut.mutation import trampoline
from mutmut.mutation.file_mutation import (
    mutate_file_contents,
)

from tests.mutants.equivalent import Place, reason_for

ROOT = Path(__file__).parent.parent.parent
_PACKAGE = "sqla_jobs.rules"
_QUIETLY = ["-q", "-s", "--no-summary", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist"]
_OPTIONS = [*_QUIETLY, "tests/rules", "-m", "not slow"]
_LONGEST = 10
"""Seconds of CPU time after which the tests of a mutant hang."""


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


def passes(mutant: str, run: Callable[[], bool]) -> bool:
    """Return what `run` returns in a child process with this mutant."""
    if (child := os.fork()) != 0:
        return os.waitpid(child, 0)[1] == 0
    resource.setrlimit(resource.RLIMIT_CPU, (_LONGEST, _LONGEST))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    trampoline.set_mutant_under_test(mutant)
    os._exit(0 if run() else 1)


class Trials:
    """A pytest plugin that runs the collected tests once for each mutant, in place of once."""

    def __init__(self, names: dict[Place, str]) -> None:
        self._names = names
        self.survivors: dict[Place, str] | None = None
        """The mutants that no test noticed. None if the tests do not pass without one."""

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if passes("none", partial(_pass, session.items)):
            self.survivors = {place: name for place, name in self._names.items() if self._survives(place, session)}
        return True

    def _survives(self, place: Place, session: pytest.Session) -> bool:
        own = f"test_{place.statement.partition('.')[0]}.py"
        items = sorted(session.items, key=lambda item: own not in item.nodeid)
        return passes(self._names[place], partial(_pass, items))


def _pass(items: Sequence[pytest.Item]) -> bool:
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        if item.session.testsfailed:
            return False
    return True


def _pass_collected_anew() -> bool:
    """Run the tests with tables that are made with the mutant."""
    for name in [name for name in sys.modules if name.startswith("tests.rules.")]:
        del sys.modules[name]
    return pytest.main([*_OPTIONS, "-x"]) == 0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.rules", description=__doc__)
    parser.add_argument("modules", nargs="*", help="such as retry; all where none is named")
    given = parser.parse_args(arguments)
    sys.meta_path.insert(0, _Finder)
    for module in pkgutil.iter_modules([str(ROOT.joinpath(*_PACKAGE.split(".")))]):
        if not given.modules or module.name in given.modules:
            importlib.import_module(f"{_PACKAGE}.{module.name}")
    wanted = {
        place: name
        for place, name in mutants().items()
        if not given.modules or place.statement.partition(".")[0] in given.modules
    }
    tried = {place: name for place, name in wanted.items() if reason_for(place) is None}
    trials = Trials(tried)
    pytest.main(_OPTIONS, plugins=[trials])
    if trials.survivors is None:
        raise SystemExit("the tests do not pass without a mutant")
    survivors = [place for place, name in trials.survivors.items() if passes(name, _pass_collected_anew)]
    for place in survivors:
        print(f"SURVIVED {place.statement}: {place.change}")
    print(f"{len(tried)} mutants tried, {len(survivors)} survived; {len(wanted) - len(tried)} more are equivalent")
    raise SystemExit(bool(survivors))


if __name__ == "__main__":
    main()
