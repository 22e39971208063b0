"""Sees each statement of `sqla_jobs/queries` as it is compiled: writes it down, or plants a mutant in it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy.sql.compiler import SQLCompiler

import sqla_jobs.queries
from sqla_jobs.queries.statement import Statement
from tests.mutants.equivalent import Place
from tests.mutants.operators import Mutant, mutants

_HOME = str(Path(sqla_jobs.queries.__file__).parent)
_HELPERS = ("statement.py", "expressions.py")
NAME = "name_of_statement"
"""What SQLAlchemy knows a statement and its compiled text by."""
RELATED = [
    ["ClaimLimited", "GateStatuses", "TellOthers"],
    ["FinishAny", "FinishErased"],
    ["Promote", "Poll"],
    ["schedules.fire", "unique_ticks.fire_unique"],
]
"""Statements that the same code builds. What reads the same in several of them is wrong in all, and tried once."""


def related(statement: str) -> list[str]:
    """The statement, among those that it is related to."""
    return next((several for several in RELATED if statement in several), [statement])


def places(statement: str, text: str, fixed: dict[str, Any]) -> dict[Place, Mutant]:
    """The mutants of one text of a statement."""
    found: dict[Place, Mutant] = {}
    for mutant in mutants(text, fixed):
        nth = 0
        while (place := Place(statement, mutant.named(text), nth)) in found:
            nth += 1
        found[place] = mutant
    return found


def watch(seen: Callable[[str, str, dict[str, Any]], str]) -> None:
    """Have `seen` called with the name, text and parameters of each; what it returns is sent to the server."""
    compile_ = SQLCompiler.__init__

    def compiled(self: Any, dialect: Any, statement: Any, *args: Any, **options: Any) -> None:
        compile_(self, dialect, statement, *args, **options)
        if statement is not None and dialect.driver == "psycopg":
            name = statement._execution_options.get(NAME) if hasattr(statement, "_execution_options") else None
            if name or (name := _caller()):
                self.string = seen(name, self.string, {**self.params})
                setattr(self, NAME, name)

    SQLCompiler.__init__ = compiled  # type: ignore[method-assign]
    Statement._built = property(built)  # type: ignore[assignment]


def plant(place: Place) -> None:
    """The statement is wrong in this place from now on, and so are those that are related to it."""
    names = related(place.statement)

    def seen(name: str, text: str, fixed: dict[str, Any]) -> str:
        mutant = places(place.statement, text, fixed).get(place) if name in names else None
        return text if mutant is None else mutant.applied(text)

    watch(seen)


def built(self: Statement) -> Any:
    """In place of `Statement._built`: the statement knows its name when it is compiled."""
    if "_marked" not in vars(self):
        vars(self)["_marked"] = self.sql().execution_options(**{NAME: type(self).__name__})
    return vars(self)["_marked"]


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
