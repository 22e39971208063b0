"""The statements of a job's life: a change of one shows in `docs/sql` as a difference."""

from __future__ import annotations

import pytest

from tests.statements import SQL, statements

STATEMENTS = statements()


@pytest.mark.parametrize("name", STATEMENTS)
def test_the_sql_in_the_docs_is_what_is_executed(name: str) -> None:
    kept = SQL.joinpath(f"{name}.sql")
    assert kept.exists(), "renew the files: python -m tests.statements"
    assert kept.read_text(encoding="utf-8") == STATEMENTS[name], "renew the files: python -m tests.statements"


def test_no_file_is_left_of_a_statement_that_is_gone() -> None:
    assert {kept.stem for kept in SQL.iterdir()} == set(STATEMENTS)
