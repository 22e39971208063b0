"""Assertions about enqueued jobs, and their failures."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from textwrap import dedent

import pytest
from sqlalchemy.orm import Session

from sqla_jobs import Unique
from sqla_jobs.testing import (
    assert_enqueued,
    assert_not_enqueued,
    drain,
    enqueued,
)
from tests.testing.kit_shop import Order, charge, greet, jobs, send, settle


def test_a_job_is_found_by_some_of_its_arguments_and_returned(kit_session: Session) -> None:
    send.enqueue(kit_session, email="a@b.c", body="one")
    two = send.enqueue(kit_session, email="a@b.c", body="two")
    assert assert_enqueued(kit_session, send, body="two") is two
    assert assert_enqueued(kit_session, send) is two
    assert [job.args["body"] for job in enqueued(kit_session, send, email="a@b.c")] == ["one", "two"]
    assert_not_enqueued(kit_session, send, email="x@y.z")
    with pytest.raises(AssertionError, match=f"job {two.id}"):
        assert_not_enqueued(kit_session, send, body="two")
    with pytest.raises(AssertionError, match=f"job {two.id}"):
        assert_not_enqueued(kit_session, jobs)
    greet.enqueue(kit_session, "Ada")
    with pytest.raises(AssertionError, match="charge"):
        assert_enqueued(kit_session, charge)
    assert_enqueued(kit_session, jobs.tasks["greet"], name="Ada")


def test_arguments_are_compared_as_the_task_gets_them(kit_session: Session) -> None:
    charge.enqueue(kit_session, amount=Decimal("9.50"), token="t", due=date(2026, 1, 2))
    assert_enqueued(kit_session, charge, amount=Decimal("9.5"), due=date(2026, 1, 2))
    assert_not_enqueued(kit_session, charge, amount=Decimal("9.51"))
    send.enqueue(kit_session, email="a@b.c")
    assert_enqueued(kit_session, send, body="hello", tags=None)
    kit_session.add(order := Order())
    settle.enqueue(kit_session, order=order)
    assert_enqueued(kit_session, settle, order=order)
    kit_session.add(another := Order())
    assert_not_enqueued(kit_session, settle, order=another)


def test_a_job_is_found_by_its_options(kit_session: Session) -> None:
    moment = datetime(2040, 1, 1, tzinfo=UTC)
    plain = send.enqueue(kit_session, email="a@b.c")
    options = send.options(queue="mail", priority=-5, delay=60, unique_key="welcome", columns={"tenant": "acme"})
    one = options.enqueue(kit_session, email="a@b.c")
    two = send.options(run_at=moment).enqueue(kit_session, email="a@b.c")
    assert enqueued(kit_session, options) == [one]
    assert enqueued(kit_session, send.options(delay=timedelta(minutes=1), queue="mail")) == [one]
    assert enqueued(kit_session, send.options(run_at=moment)) == [two]
    assert enqueued(kit_session, send.options(queue="default")) == [plain, two]
    assert_not_enqueued(kit_session, send.options(delay=3600))
    assert_not_enqueued(kit_session, send.options(columns={"tenant": "other"}))
    keyed = send.options(unique=Unique(key="email")).enqueue(kit_session, email="k@b.c")
    assert enqueued(kit_session, send.options(unique=Unique(key="email"))) == [keyed]


def test_a_job_is_found_in_any_state(kit_session: Session) -> None:
    job = send.enqueue(kit_session, email="a@b.c")
    drain(kit_session, jobs)
    assert assert_enqueued(kit_session, send).state == "succeeded"
    job.task, job.args = "old_charge", {"(erased)": True}
    assert enqueued(kit_session, charge) == [job]
    assert_not_enqueued(kit_session, charge, token="t")


def test_a_failure_shows_a_diff_of_the_most_similar_jobs(kit_session: Session) -> None:
    far = send.options(queue="mail").enqueue(kit_session, email="x@y.z", body="bye")
    near = send.enqueue(kit_session, email="a@b.c", body="bye", tags=["new"])
    with pytest.raises(AssertionError) as raised:
        assert_enqueued(kit_session, send.options(queue="default"), email="a@b.c", tags=["old"])
    assert str(raised.value) == dedent(
        f"""\
        expected a job of 'send' with email="a@b.c", tags=["old"], queue="default" (-); the most similar (+) of 2:

          job {near.id}, queued
              "email": "a@b.c"
              "tags": [
          -     "old"
          +     "new"
              ]
              "queue": "default"

          job {far.id}, queued
          -   "email": "a@b.c"
          +   "email": "x@y.z"
          -   "tags": [
          +   "tags": null
          -     "old"
          -   ]
          -   "queue": "default"
          +   "queue": "mail\""""
    )


def test_a_failure_shows_no_sensitive_argument(kit_session: Session) -> None:
    charge.enqueue(kit_session, amount=Decimal(1), token="hunter2")
    with pytest.raises(AssertionError) as raised:
        assert_enqueued(kit_session, charge, amount=Decimal(1), token="swordfish")
    assert "hunter2" not in str(raised.value)
    assert "swordfish" not in str(raised.value)
