"""`run_job` calls a task as a worker does, without a job."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy.orm import Session

from sqla_jobs import ArgumentsError
from sqla_jobs.testing import assert_not_enqueued, run_job
from tests.testing.kit_shop import Greet, Order, answers, jobs, remaining, settle


def test_arguments_go_through_the_codec_and_the_rest_is_injected(kit_session: Session) -> None:
    kit_session.add(order := Order())
    result = run_job(kit_session, settle, attempt=3, cancel_requested=True)(order=order)
    assert result == {"attempt": 3, "most": 25, "stop": True}
    assert order.status == "settled"
    assert_not_enqueued(kit_session, jobs)
    with pytest.raises(ArgumentsError, match="argument 'order' takes a row of Order, got int"):
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


def test_a_task_that_is_a_class_is_known_by_its_name(kit_session: Session) -> None:
    assert run_job(kit_session, jobs.tasks["Greet"])(name="Ada") == "Hello Ada"
    with pytest.raises(ArgumentsError, match=r"a class that is a task is given as jobs.tasks\['its name'\]"):
        run_job(kit_session, Greet)  # type: ignore[call-overload]


def test_a_result_that_cannot_be_stored_is_refused(kit_session: Session) -> None:
    assert run_job(kit_session, answers)(what="text") == "text"
    with pytest.raises(ArgumentsError, match="the result, a object, is not JSON"):
        run_job(kit_session, answers)(what="object")


def test_an_option_that_no_run_has_is_refused(kit_session: Session) -> None:
    with pytest.raises(ArgumentsError, match="attempt must be"):
        run_job(kit_session, answers, attempt=0)
    with pytest.raises(ArgumentsError, match="max_attempts must be"):
        run_job(kit_session, answers, max_attempts=0)
    with pytest.raises(ArgumentsError, match="unknown option 'queue'; valid options: attempt, max_attempts"):
        run_job(kit_session, answers, queue="mail")  # type: ignore[call-overload]
    with pytest.raises(ArgumentsError, match="attempt must be an integer from 1 to 3, got 9"):
        run_job(kit_session, answers, attempt=9, max_attempts=3)
    with pytest.raises(ArgumentsError, match="headers must be a mapping of at most 50 names to texts"):
        run_job(kit_session, answers, headers="none")  # type: ignore[call-overload]
