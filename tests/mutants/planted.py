"""A pytest plugin that writes down the statements of `sqla_jobs/queries` and their tests, or plants a mutant.

It sees the statements as they are compiled.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.sql.compiler import SQLCompiler

import sqla_jobs.queries
from sqla_jobs.queries.commit import Commit
from sqla_jobs.queries.expressions import numbered
from sqla_jobs.queries.statement import RenderedStatement, Statement
from tests.mutants.operators import Mutant, mutants
from tests.mutants.rules import WHICH

TO = "SQLA_JOBS_RECORD"
_HOME = str(Path(sqla_jobs.queries.__file__).parent)
_HELPERS = ("statement.py", "expressions.py")
_NAME = "name_of_statement"
_RELATED = [
    {"ClaimLimited", "GateStatuses", "TellOfFreedPlaces"},
    {"FinishAny", "FinishErased"},
    {"Promote", "Poll"},
    {"schedules.fire", "unique_ticks.fire_unique"},
]
"""Statements that the same code builds: what reads the same in several of them is wrong in all."""
_texts: dict[str, tuple[str, dict[str, Any]]] = {}
_tests: defaultdict[str, set[str]] = defaultdict(set)
_took: dict[str, float] = {}
_current: list[str] = []


class Place(NamedTuple):
    """A change, found again each time."""

    statement: str
    """The statement, or the function."""
    change: str
    nth: int
    """Which of those that read the same."""


def places(statement: str, text: str, fixed: dict[str, Any]) -> dict[Place, Mutant]:
    """The mutants of one text of a statement."""
    found: dict[Place, Mutant] = {}
    for mutant in mutants(text, fixed):
        nth = 0
        while (place := Place(statement, mutant.named(text), nth)) in found:
            nth += 1
        found[place] = mutant
    return found


def related(statement: str) -> set[str]:
    """The statement, and those that the same code builds."""
    return next((several for several in _RELATED if statement in several), {statement})


def rank(text: str) -> tuple[bool, bool, int]:
    """Of several texts of a statement, the mutants are made of that with the usual tables which workers send."""
    return "sqla_" in text, "$1" in text, len(text)


def pytest_configure() -> None:
    """Watch what is compiled."""
    compile_, ask = SQLCompiler.__init__, Commit._ask

    def compiled(self: Any, dialect: Any, statement: Any, *args: Any, **options: Any) -> None:
        compile_(self, dialect, statement, *args, **options)
        if statement is not None and dialect.driver == "psycopg":
            name = statement._execution_options.get(_NAME) if hasattr(statement, "_execution_options") else None
            if name or (name := _caller()):
                self.string = _seen(name, self.string, {**self.params})
                setattr(self, _NAME, name)

    def asked(self: Commit, *given: Any) -> Any:
        _tests["commit.__init__"].update(_current)
        return ask(self, *given)

    SQLCompiler.__init__ = compiled  # type: ignore[method-assign]
    Commit._ask = asked  # type: ignore[method-assign,assignment]
    Statement._built = property(_built)  # type: ignore[assignment]
    RenderedStatement.numbered = property(_numbered)  # type: ignore[assignment]
    event.listen(Engine, "before_cursor_execute", _executed)


def _seen(name: str, text: str, fixed: dict[str, Any]) -> str:
    if WHICH in os.environ:
        place = Place(*json.loads(os.environ[WHICH]))
        is_planted = name in related(place.statement)
        mutant = places(place.statement, text, fixed).get(place) if is_planted else None
        return text if mutant is None else mutant.applied(text)
    if rank(text) > rank(_texts.get(name, ("", {}))[0]):
        _texts[name] = text, {key: value for key, value in fixed.items() if isinstance(value, str | int | float)}
    _tests[name].update(_current)
    return text


def _built(self: Statement) -> Any:
    """In place of `Statement._built`: the statement knows its name when it is compiled."""
    _tests[type(self).__name__].update(_current)
    if "_marked" not in vars(self):
        vars(self)["_marked"] = self.sql().execution_options(**{_NAME: type(self).__name__})
    return vars(self)["_marked"]


def _numbered(self: RenderedStatement) -> Any:
    _tests[type(self).__name__].update(_current)
    if "_as_text" not in vars(self):
        vars(self)["_as_text"] = numbered(self._built)
    return vars(self)["_as_text"]


def _executed(_connection: Any, _cursor: Any, _text: str, _parameters: Any, context: Any, _many: bool) -> None:
    """It may have been compiled for an earlier test."""
    if name := getattr(context.compiled, _NAME, None):
        _tests[name].update(_current)


def _caller() -> str:
    """The function in `queries` that has the statement compiled: such as `delete_jobs.remove`."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(_HOME) and not code.co_filename.endswith(_HELPERS):
            name = code.co_name
            if not name.startswith("_") or name == "__init__":
                return f"{Path(code.co_filename).stem}.{name}"
        frame = frame.f_back
    return ""


def pytest_runtest_logstart(nodeid: str) -> None:
    """From here on, statements are this test's."""
    _current[:] = [nodeid]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add what a phase took."""
    _took[report.nodeid] = _took.get(report.nodeid, 0.0) + report.duration


def pytest_sessionfinish() -> None:
    """Write down what was seen."""
    if TO in os.environ:
        found = {"texts": _texts, "tests": {name: sorted(tests) for name, tests in _tests.items()}, "took": _took}
        Path(os.environ[TO]).joinpath(f"{os.getpid()}.json").write_text(json.dumps(found), encoding="utf-8")
