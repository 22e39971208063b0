"""What becomes of a job when its attempt ends, and what is stored of its error."""

from __future__ import annotations

from typing import Any

import pytest
import tenacity
from tenacity import RetryCallState, Retrying

from sqla_jobs import Cancel, Retry, Snooze
from sqla_jobs.rules.outcomes import MAX_MESSAGE, MAX_TRACEBACK, Failure, Outcome, decide
from sqla_jobs.rules.redaction import WITHHELD, Secrets
from sqla_jobs.rules.retry import DEFAULT_POLICY
from tests.helpers import as_id
from tests.rules.test_retry import as_the_error_says, raised


def decided(error: BaseException, policy: tenacity.BaseRetrying = DEFAULT_POLICY, **facts: Any) -> Outcome:
    stored: dict[str, Any] = {"attempt": 1, "max_attempts": 25, "elapsed": 0.0, **facts}
    return decide(raised(error), policy=policy, **stored)


class TestDecide:
    @pytest.mark.parametrize(
        ("error", "facts", "kind"),
        [
            (ValueError("no"), {"attempt": 24}, "retried"),
            (ValueError("no"), {"attempt": 25}, "failed"),
            (ValueError("no"), {"policy": Retrying(stop=tenacity.stop_after_attempt(1))}, "failed"),
            (ValueError("no"), {"policy": Retrying(stop=tenacity.stop_after_delay(60)), "elapsed": 61.0}, "failed"),
            (ValueError("no"), {"policy": Retrying(retry=tenacity.retry_if_exception_type(OSError))}, "failed"),
            (Snooze(5), {"attempt": 25}, "snoozed"),
            (Cancel("why"), {"attempt": 25}, "cancelled"),
            (Retry(5), {"attempt": 24}, "retried"),
            (Retry(5), {"attempt": 25}, "failed"),
            (Retry(5), {"policy": Retrying(stop=lambda state: state.upcoming_sleep > 4)}, "failed"),
            (Retry(5), {"policy": Retrying(retry=tenacity.retry_if_exception_type(OSError))}, "retried"),
        ],
        ids=as_id,
    )
    def test_what_follows(self, error: BaseException, facts: dict[str, Any], kind: str) -> None:
        outcome = decided(error, **facts)
        assert outcome.kind == kind
        assert (outcome.failure is None) == (kind == "snoozed")

    @pytest.mark.parametrize(
        ("errors", "kind", "delay"),
        [
            ([ValueError(3), OSError(9), ValueError(4)], "retried", 9),
            ([ValueError(3), KeyError(9)], "failed", None),
            ([ValueError(3), Snooze(5), Snooze(7), Snooze(6)], "snoozed", 7),
            ([Retry(50), Snooze(5)], "snoozed", 5),
            ([Snooze(5), ExceptionGroup("more", [KeyError(9), Cancel("why")])], "cancelled", None),
        ],
        ids=as_id,
    )
    def test_what_follows_from_several_errors(self, errors: list[Exception], kind: str, delay: float | None) -> None:
        policy = Retrying(retry=tenacity.retry_if_not_exception_type(KeyError), wait=as_the_error_says)
        outcome = decided(ExceptionGroup("several", errors), policy)
        assert (outcome.kind, outcome.delay) == (kind, delay)

    @pytest.mark.parametrize("part", ["retry", "wait", "stop"])
    def test_a_policy_that_raises_ends_the_job_with_the_error_of_the_task_and_both_are_told(self, part: str) -> None:
        def broken(state: RetryCallState) -> Any:
            raise ZeroDivisionError("the policy is broken")

        parts: Any = {part: broken}
        outcome = decided(ValueError("the task failed"), Retrying(**parts))
        assert outcome.kind == "failed"
        assert outcome.failure is not None
        assert outcome.failure.type == "ValueError"
        assert outcome.failure.message.startswith("the task failed\n")
        assert outcome.failure.message.endswith("ZeroDivisionError: the policy is broken")
        assert "the policy is broken" in (outcome.failure.traceback or "")
        assert "the task failed" in (outcome.failure.traceback or "")

    def test_a_cancel_says_why_without_the_secret(self) -> None:
        outcome = decided(Cancel("hunter2\x00 is gone"), secrets=Secrets(["hunter2"]))
        assert outcome == Outcome.cancelled(Failure("Cancel", WITHHELD))
        assert [str(cancel) for cancel in (Cancel(), Cancel("it is gone"))] == ["", "it is gone"]


class RaisingStr(Exception):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __str__(self) -> str:
        raise self.error


class TestFailure:
    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (RaisingStr(SystemExit()), "<its __str__ raised SystemExit>"),
            (ValueError("a\x00b"), "a\\x00b"),
            (ValueError("a\ud800b"), "a\\ud800b"),
        ],
    )
    def test_whatever_it_says_can_be_stored(self, error: BaseException, message: str) -> None:
        failure = Failure.of(raised(error))
        assert failure.message == message
        for text in (failure.type, failure.message, failure.traceback or ""):
            assert "\x00" not in text
            text.encode()

    def test_a_megabyte_is_cut_with_a_mark_and_keeps_its_frames(self) -> None:
        failure = Failure.of(raised(ValueError("x" * 1_000_000)))
        assert failure.message == "x" * MAX_MESSAGE + "… [990,000 characters left out] …"
        assert failure.traceback is not None
        assert len(failure.traceback) < MAX_TRACEBACK + 100
        assert "in raised" in failure.traceback
        assert "characters left out] …" in failure.traceback

    def test_a_secret_at_the_cut_is_found(self) -> None:
        failure = Failure.of(raised(ValueError("x" * (MAX_MESSAGE - 6) + "hunter2")), secrets=Secrets(["hunter2"]))
        assert failure.message == WITHHELD
