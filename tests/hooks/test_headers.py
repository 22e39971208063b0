"""What is given along with a job, from the enqueue to the run."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from sqla_jobs import ArgumentsError, Unique
from sqla_jobs.testing import assert_enqueued, assert_not_enqueued, drain
from tests import hooked_shop as shop
from tests.helpers import as_id
from tests.hooked_shop import jobs


def headers(session: Session) -> list[dict[str, str] | None]:
    session.flush()
    return [*session.scalars(select(jobs.Job.headers).order_by(jobs.Job.id))]


def test_headers_are_added_at_each_enqueue_whatever_its_kind(session: Session) -> None:
    token = shop.request.set("one")
    try:
        shop.whose.enqueue(session)
        shop.whose.enqueue_many(session, [{}, {}])
        shop.whose.options(unique_key="u").enqueue(session)
        shop.breaks.options(unique=Unique(key="n")).enqueue_many(session, [{"n": 1}])
        shop.whose.options(headers={"request": "mine", "more": "x"}).enqueue(session)
    finally:
        shop.request.reset(token)
    shop.whose.enqueue(session)
    added = {"request": "one"}
    assert headers(session) == [added, added, added, added, added, {"request": "mine", "more": "x"}, None]


def test_a_job_that_is_replaced_carries_the_new_headers_alone(session: Session) -> None:
    replacing = Unique(on_conflict="replace", max_delay=None)
    first = shop.breaks.options(unique_key="k", headers={"a": "1"}, delay=60).enqueue(session, n=1)
    again = shop.whose.options(unique_key="k", unique=replacing, headers={"b": "2"}, delay=60).enqueue(session)
    session.refresh(again)
    assert (again.id, again.headers, again.on_failure) == (first.id, {"b": "2"}, None)


@pytest.mark.parametrize(
    "given",
    [["request"], {"a": 1}, {"a": "\x00"}, {"a": "x" * 2001}, {"a" * 101: ""}, {str(n): "" for n in range(51)}],
    ids=as_id,
)
def test_what_no_job_can_carry_is_refused(session: Session, given: Any) -> None:
    with pytest.raises(ArgumentsError):
        shop.whose.options(headers=given).enqueue(session)


def test_what_python_cannot_read_of_plain_sql_is_no_header(session: Session) -> None:
    session.execute(
        text("""INSERT INTO sqla_jobs (task, args, headers) VALUES ('whose', '{}', CAST(:given AS jsonb))"""),
        {"given": f'{{"request": {"9" * 250}, "more": {"9" * 290}}}'},
    )
    drain(session, jobs)
    assert session.scalars(select(jobs.Run.outcome)).one() == "succeeded"


def test_other_json_that_plain_sql_gives_is_text_in_the_run(session: Session) -> None:
    session.execute(
        text("""INSERT INTO sqla_jobs (task, args, headers) VALUES ('whose', '{}', '{"request": {"id": 7}}')""")
    )
    drain(session, jobs)
    assert session.scalars(select(jobs.Run.result)).one() == '{"id": 7}'


def test_an_assertion_looks_for_the_headers_that_it_names(session: Session) -> None:
    token = shop.request.set("one")
    try:
        shop.whose.options(headers={"a": "1"}).enqueue(session)
    finally:
        shop.request.reset(token)
    assert_enqueued(session, shop.whose.options(headers={"a": "1"}))
    assert_not_enqueued(session, shop.whose.options(headers={"a": "2"}))


def test_all_headers_together_are_fifty_at_most(session: Session) -> None:
    token = shop.request.set("one")
    try:
        with pytest.raises(ArgumentsError):
            shop.whose.options(headers={str(n): "" for n in range(50)}).enqueue(session)
    finally:
        shop.request.reset(token)
