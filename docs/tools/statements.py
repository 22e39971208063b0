"""The library's statements as SQL: `python docs/tools/statements.py [NAME …]` prints them."""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
import textwrap
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from sqlalchemy.orm import registry

from sqla_jobs import queries
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import map_models
from sqla_jobs.queries import commit, schedules
from sqla_jobs.queries.begin import _question
from sqla_jobs.queries.expressions import Tables, rendered
from sqla_jobs.queries.statement import Statement

LEASE = 30.0
"""Seconds: a worker's default, which `begin` and `commit` send as their limit of waits."""


def statements() -> Iterator[tuple[str, str]]:
    """Yield the name and the SQL of each statement, sorted by module."""
    tables = Tables(map_models(registry(), None, "sqla_", JobMixin))
    yield "commit.BEGIN", laid_out(f"BEGIN; {_question(LEASE)}")
    yield "commit.COMMIT", laid_out(f"{commit.Commit(tables, LEASE)._plain}; COMMIT")
    for name in ("due", "fire", "record", "advance"):
        yield f"schedules.{name}", compiled(getattr(schedules, name)(tables))
    for module in pkgutil.iter_modules(queries.__path__, f"{queries.__name__}."):
        for one in vars(import_module(module.name)).values():
            if _is_statement(one) and one.__module__ == module.name:
                yield f"{module.name.rpartition('.')[2]}.{one.__name__}", compiled(one(tables, **_waits(one)).sql())


def _is_statement(one: Any) -> bool:
    """True for a class with SQL of its own."""
    is_one = inspect.isclass(one) and issubclass(one, Statement)
    return is_one and (one.sql is not Statement.sql or hasattr(one, "text"))


def _waits(one: Any) -> dict[str, float]:
    """The limit of the statement's waits, if it has one."""
    return {"lock_timeout": LEASE} if "lock_timeout" in inspect.signature(one).parameters else {}


def compiled(statement: Any) -> str:
    """The text that psycopg gets, and below it the parameters that are the same at each call."""
    text, parameters = rendered(statement)
    fixed = "".join(f"-- {name} = {value!r}\n" for name, value in sorted(parameters.items()) if value is not None)
    return laid_out(re.sub(r"__\[POSTCOMPILE_(\w+)\]", r"%(\1)s", text)) + fixed


def laid_out(statement: str) -> str:
    """The same in lines of at most 110 characters, none of which ends inside a quoted text."""
    together = re.sub(r"'[^']*'", lambda quoted: quoted[0].replace(" ", "\0"), statement)
    lines = [
        part
        for line in together.splitlines()
        for part in textwrap.wrap(line, 110, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    ]
    return "\n".join(lines).replace("\0", " ") + "\n"


def page() -> str:
    """Return the page of the documentation."""
    blocks = (f"## {name}\n\n```sql\n{text}```\n" for name, text in statements())
    return "\n".join(["# Statements\n", "As psycopg gets them, by their classes in `sqla_jobs/queries`.\n", *blocks])


if __name__ == "__main__":
    for title, sql in statements():
        if not sys.argv[1:] or title.rpartition(".")[2] in sys.argv[1:]:
            print(f"-- {title}\n{sql}")
