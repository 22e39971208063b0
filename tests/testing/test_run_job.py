"""`run_job` runs one job of a task, and no other."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy.orm import Session

from sqla_jobs import ArgumentsError
from sqla_jobs.errors import UnstorableResult
from sqla_jobs.testing import assert_enqueued, run_job
from tests.testing.kit_shop import Order, answers, remaining, send, settle


def test_arguments_go_through_the_codec_and_the_rest_is_injected(kit_session: Session) -> None:
    kit_session.add(order := Order())
    result = run_job(kit_session, settle, attempt=3)(order=order)
    assert result == {"attempt": 3, "most": 25, "stop": False}
    assert order.status == "settled"
    assert assert_enqueued(kit_session, settle, order=order).result == result
    with pytest.raises(ArgumentsError, match="'order'"):
        run_job(kit_session, settle)(order=7)  # type: ignore[arg-type]


def test_its_exception_reaches_the_test_and_its_writes_are_rolled_back(kit_session: Session) -> None:
    kit_session.add(order := Order(status="mine"))
    with pytest.raises(ValueError, match="refused"):
        run_job(kit_session, settle)(order, status="refused")
    assert order.status == "mine"


def test_a_task_knows_its_deadline(kit_session: Session) -> None:
    assert run_job(kit_session, remaining, scheduled_for=datetime.now(UTC))() is None
    kit_session.add(order := Order())
    assert run_job(kit_session, settle, max_attempts=2)(order)["most"] == 2


def test_a_result_that_cannot_be_stored_is_refused(kit_session: Session) -> None:
    assert run_job(kit_session, answers)(what="text") == "text"
    with pytest.raises(UnstorableResult, match="object"):
        run_job(kit_session, answers)(what="object")


def test_it_runs_no_other_job_and_no_second_attempt(kit_session: Session) -> None:
    other = send.enqueue(kit_session, email="a@b.c")
    kit_session.add(order := Order())
    with pytest.raises(ValueError, match="refused"):
        run_job(kit_session, settle)(order, status="refused")
    job = assert_enqueued(kit_session, settle, order=order)
    assert (other.state, job.state, job.attempt) == ("queued", "scheduled", 1)
