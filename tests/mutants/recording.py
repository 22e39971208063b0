"""A pytest plugin that writes down which tests execute which statement, how long they take, and the statements."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from sqla_jobs.queries.commit import Commit
from sqla_jobs.queries.statement import RenderedStatement, Statement
from tests.mutants import planted

TO = "SQLA_JOBS_MUTANTS"
_texts: dict[str, tuple[str, dict[str, Any]]] = {}
_tests: defaultdict[str, set[str]] = defaultdict(set)
_took: dict[str, tuple[float, bool]] = {}
_current: list[str] = []


def pytest_configure() -> None:
    planted.watch(_seen)

    def built(self: Statement) -> Any:
        _tests[type(self).__name__].update(_current)
        return planted.built(self)

    Statement._built = property(built)  # type: ignore[assignment]
    RenderedStatement.numbered = property(_numbered)  # type: ignore[assignment]
    ask = Commit._ask

    def asked(self: Commit, *given: Any) -> Any:
        _tests["commit.__init__"].update(_current)
        return ask(self, *given)

    Commit._ask = asked  # type: ignore[method-assign,assignment]
    event.listen(Engine, "before_cursor_execute", _executed)


def _executed(_connection: Any, _cursor: Any, _text: str, _parameters: Any, context: Any, _many: bool) -> None:
    """It may have been compiled for an earlier test."""
    if name := getattr(context.compiled, planted.NAME, None):
        _tests[name].update(_current)


def _numbered(self: RenderedStatement) -> Any:
    from sqla_jobs.queries.expressions import numbered

    _tests[type(self).__name__].update(_current)
    if "_as_text" not in vars(self):
        vars(self)["_as_text"] = numbered(self._built)
    return vars(self)["_as_text"]


def _seen(name: str, text: str, fixed: dict[str, Any]) -> str:
    if len(text) > len(_texts.get(name, ("", {}))[0]):  # a function that has several: the longest
        _texts[name] = text, {key: value for key, value in fixed.items() if isinstance(value, str | int | float)}
    _tests[name].update(_current)
    return text


def pytest_runtest_logstart(nodeid: str) -> None:
    _current[:] = [nodeid]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    before, _ = _took.get(item.nodeid, (0.0, False))
    _took[item.nodeid] = before + call.duration, item.get_closest_marker("slow") is not None
    return (yield)


def pytest_sessionfinish() -> None:
    found = {
        "texts": _texts,
        "tests": {name: sorted(tests) for name, tests in _tests.items()},
        "took": _took,
    }
    Path(os.environ[TO]).joinpath(f"{os.getpid()}.json").write_text(json.dumps(found), encoding="utf-8")
