"""`run_job` calls a task as a worker does, without a job."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy.orm import Session

from sqla_jobs import ArgumentsError
from sqla_jobs.testing import assert_not_enqueued, run_job
from tests.testing.kit_shop import Order, answers, jobs, remaining, settle


def test_arguments_go_through_the_codec_and_the_rest_is_injected(kit_session: Session) -> None:
    kit_session.add(order := Order())
    result = run_job(kit_session, settle, attempt=3, cancel_requested=True)(order=order)
    assert result == {"attempt": 3, "most": 25, "stop": True}
    assert order.status == "settled"
    assert_not_enqueued(kit_session, jobs)
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
    with pytest.raises(ArgumentsError, match="object"):
        run_job(kit_session, answers)(what="object")


@pytest.mark.parametrize(
    "options",
    [
        {"attempt": 0},
        {"attempt": 9, "max_attempts": 3},
        {"headers": "none"},
    ],
    ids=str,
)
def test_an_option_that_no_run_has_is_refused(kit_session: Session, options: Any) -> None:
    with pytest.raises(ArgumentsError, match=next(iter(options))):
        run_job(kit_session, answers, **options)
