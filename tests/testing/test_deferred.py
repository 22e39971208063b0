"""Deferred constraints: the test never commits, so the kit checks them where a worker would commit."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sqla_jobs.testing import drain
from tests.testing.kit_shop import jobs


@jobs.task(name="adds_a_line", max_attempts=1)
def adds_a_line(session: Session, order: int, is_whole: bool, commits: bool = False) -> None:
    session.execute(text("INSERT INTO lines VALUES (:order)"), {"order": order})
    if is_whole:
        session.execute(text("INSERT INTO books VALUES (:order)"), {"order": order})
    if commits:
        session.commit()


@pytest.fixture
def session(kit_session: Session) -> Session:
    """A session with tables whose foreign key is checked at the commit."""
    kit_session.execute(text("CREATE TABLE books (id int PRIMARY KEY, name text CONSTRAINT named CHECK (name <> ''))"))
    reference = 'CONSTRAINT "a:line %(s) has" REFERENCES books DEFERRABLE INITIALLY DEFERRED'
    kit_session.execute(text(f"CREATE TABLE lines (book int {reference})".replace(":", "\\:")))
    kit_session.commit()
    return kit_session


def lines(session: Session) -> list[int]:
    return [*session.scalars(text("SELECT book FROM lines ORDER BY book"))]


@pytest.mark.parametrize("commits", [False, True])
def test_a_run_ends_as_its_commit_would(session: Session, commits: bool) -> None:
    broken = adds_a_line.enqueue(session, order=1, is_whole=False, commits=commits)
    whole = adds_a_line.enqueue(session, order=2, is_whole=True)
    with pytest.raises(IntegrityError, match="a:line"):
        drain(session, jobs)
    assert (broken.state, broken.runs[0].error_type) == ("failed", "sqlalchemy.exc.IntegrityError")
    if commits:  # the line stays, since the run has no savepoint any more
        session.execute(text("DELETE FROM lines"))
    assert drain(session, jobs).runs == 1
    assert (whole.state, lines(session)) == ("succeeded", [2])
