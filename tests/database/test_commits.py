"""What is called once a session has committed."""

from __future__ import annotations

from functools import partial

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqla_jobs.database.commits import on_commit
from tests.shop import jobs

called: list[str] = []


@pytest.fixture(autouse=True)
def forget() -> None:
    called.clear()


def ask(session: Session, name: str) -> None:
    session.connection()
    on_commit(session, jobs.Job, lambda: called.append(name))


def test_a_savepoint_that_an_error_ends_takes_what_was_asked_for_in_it_along(session: Session) -> None:
    def fail() -> None:
        with session.begin_nested():
            ask(session, "within")
            with session.begin_nested():
                ask(session, "deeper")
            session.execute(text("SELECT 1 / 0"))

    ask(session, "before")
    with pytest.raises(DBAPIError):
        fail()
    ask(session, "after")
    session.commit()
    assert called == ["before", "after"]


def test_what_is_asked_for_once_is_called_once_and_again_in_the_next_transaction(session: Session) -> None:
    for _ in range(2):
        session.connection()
        on_commit(session, jobs.Job, lambda: called.append("once"), once="a name")
        savepoint = session.begin_nested()
        on_commit(session, jobs.Job, lambda: called.append("again"), once="a name")
        on_commit(session, jobs.Job, lambda: called.append("other"), once="other")
        savepoint.rollback()
        for name, call in (("a name", "once more"), ("other", "other"), ("other", "other once more")):
            on_commit(session, jobs.Job, partial(called.append, call), once=name)
        session.commit()
    assert called == ["once", "other"] * 2
