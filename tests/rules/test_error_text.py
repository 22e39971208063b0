"""What is told of an error: all but the data of the application that databases add to it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest
from psycopg.errors import UniqueViolation
from psycopg.pq import DiagnosticField
from sqlalchemy.exc import DBAPIError, IntegrityError, PendingRollbackError

import sqla_jobs
from sqla_jobs.rules.error_text import message_of, place_of, traceback_of

SITE = "/usr/lib/python3.11/site-packages"
STAND_IN: Any = type("StandIn", (Exception,), {"__module__": "sqlalchemy.dialects.postgresql.asyncpg"})
"""What SQLAlchemy raises in place of an error of asyncpg."""


def with_cause(error: BaseException, cause: BaseException | None, context: BaseException | None = None) -> Any:
    error.__context__, error.__cause__, error.__suppress_context__ = context, cause, False
    return error


def having(error: BaseException, **attributes: object) -> Any:
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def refused() -> UniqueViolation:
    """As psycopg raises it."""
    return UniqueViolation("twice\nDETAIL:  (name)=(Ann)", info={DiagnosticField.MESSAGE_PRIMARY: b"twice"})


def of_sqlalchemy(original: BaseException, *details: str, statement: str | None = "INSERT INTO t") -> DBAPIError:
    error = IntegrityError(statement, {"name": "Ann"}, original)
    for detail in details:
        error.add_detail(detail)
    return error


def of_asyncpg() -> Any:
    return asyncpg.InterfaceError("twice", detail="(name)=(Ann)")


class Silent(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


PSYCOPG = "(psycopg.errors.UniqueViolation) twice\n[SQL: INSERT INTO t]"
QUOTED = r'"(psycopg.errors.UniqueViolation) twice\n[SQL: INSERT INTO t]"'
ASYNCPG = "(asyncpg.exceptions._base.InterfaceError) twice\n[SQL: INSERT INTO t]"


ABOVE: dict[str, Callable[[str, Any], BaseException]] = {
    "cause": lambda message, error: with_cause(RuntimeError(message), error),
    "context": lambda message, error: with_cause(RuntimeError(message), None, error),
    "in a group": lambda message, error: with_cause(RuntimeError(message), ExceptionGroup("all", [OSError(), error])),
    "original": lambda message, error: with_cause(RuntimeError(message), having(OSError(), orig=error)),
}


class TestMessage:
    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (Silent(), "<its __str__ raised ZeroDivisionError>"),
            (refused(), "twice"),
            (of_sqlalchemy(refused()), PSYCOPG),
            (of_sqlalchemy(refused(), "row 2", "of 3"), f"(row 2)\n(of 3)\n{PSYCOPG}"),
            (STAND_IN("its own"), "its own"),
            (with_cause(STAND_IN("twice (Ann)"), of_asyncpg()), "twice"),
            (having(STAND_IN("twice (Ann)"), orig=of_asyncpg()), "twice"),
            (of_sqlalchemy(with_cause(STAND_IN("twice (Ann)"), of_asyncpg())), ASYNCPG),
            (of_sqlalchemy(having(STAND_IN("twice (Ann)"), orig=of_asyncpg())), ASYNCPG),
            (
                of_sqlalchemy(STAND_IN("its own"), statement=None),
                "(sqlalchemy.dialects.postgresql.asyncpg.StandIn) its own",
            ),
            (
                PendingRollbackError(f"This session is closed. Original exception was: {of_sqlalchemy(refused())}"),
                "This session is closed. Original exception was: (psycopg.errors.UniqueViolation) twice",
            ),
            (having(ValueError("no"), orig=OSError("lost")), "(builtins.OSError) lost"),
        ],
        ids=repr,
    )
    def test_it_has_no_data_of_the_database(self, error: BaseException, message: str) -> None:
        assert message_of(error) == message

    @pytest.mark.parametrize("above", ABOVE)
    def test_what_it_quotes_of_an_error_below_has_none_either(self, above: str) -> None:
        error = of_sqlalchemy(refused())
        quoted = f"{error} and {[str(error)]} for {error.orig}"
        assert message_of(ABOVE[above](quoted, error)) == f"{PSYCOPG} and [{QUOTED}] for twice"

    def test_errors_that_are_below_each_other_have_an_end(self) -> None:
        first, second = ValueError("first"), ValueError("second")
        assert message_of(with_cause(first, with_cause(second, first))) == "first"


def capital(text: str) -> str:
    return text.upper()


class TestStack:
    @pytest.mark.parametrize(
        ("files", "own"),
        [
            (["/app/shop/mail.py", f"{SITE}/requests/api.py", socket.__file__, "<frozen codecs>"], 0),
            (["/app/shop/mail.py", sqla_jobs.__file__, "/app/shop/smtp.py", threading.__file__], 2),
            ([f"{SITE}/shop/mail.py", f"{SITE}/shop/smtp.py", f"{SITE}/requests/api.py", socket.__file__], 1),
        ],
    )
    def test_the_place_in_the_application_is_the_innermost_line_of_its_own_code(
        self, files: list[str], own: int
    ) -> None:
        lines = [f'File "{file}", line {place}, in call' for place, file in enumerate(files)]
        assert place_of("".join(f"  {line}\n    code()\n" for line in lines)) == lines[own]


class Unreadable(ExceptionGroup[Exception]):
    @property
    def exceptions(self) -> Any:
        raise ZeroDivisionError


CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
GROUP = """ExceptionGroup: ALL (2 SUB-EXCEPTIONS)
+-+---------------- 1 ----------------
ValueError: A
+---------------- 2 ----------------
psycopg.errors.UniqueViolation: TWICE
+------------------------------------
"""
CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"


class TestTraceback:
    @pytest.mark.parametrize(
        ("error", "told"),
        [
            (of_sqlalchemy(refused()), f"sqlalchemy.exc.IntegrityError: {PSYCOPG.upper()}\n"),
            (
                with_cause(RuntimeError(f"since {of_sqlalchemy(refused())}"), of_sqlalchemy(refused())),
                f"sqlalchemy.exc.IntegrityError: {PSYCOPG.upper()}\n{CAUSE}RuntimeError: SINCE {PSYCOPG.upper()}\n",
            ),
            (with_cause(ValueError("b"), None, OSError("a")), f"OSError: A\n{CONTEXT}ValueError: B\n"),
            (
                with_cause(ValueError("c"), with_cause(ValueError("b"), OSError("a"))),
                f"OSError: A\n{CAUSE}ValueError: B\n{CAUSE}ValueError: C\n",
            ),
            (
                having(ValueError("no"), __notes__=["one", 5, Silent()]),
                "ValueError: NO\nONE\n5\n<ITS __STR__ RAISED ZERODIVISIONERROR>\n",
            ),
            (
                with_cause(ExceptionGroup("all", [ValueError("a"), refused()]), OSError("first")),
                f"OSError: FIRST\n{CAUSE}{GROUP}",
            ),
            (
                with_cause(Unreadable(str(refused()), [ValueError()]), refused()),
                "<its traceback cannot be written: TWICE (1 SUB-EXCEPTION)>",
            ),
        ],
        ids=repr,
    )  # fmt: skip
    def test_each_message_is_cleaned(self, error: BaseException, told: str) -> None:
        shown = traceback_of(error, capital)
        if isinstance(error, ExceptionGroup):
            shown = "".join(f"{line.lstrip(' |')}\n" for line in shown.split("\n"))[:-1] if "\n" in shown else shown
        assert shown == told


A, B, C, D = (ValueError(name) for name in "abcd")
