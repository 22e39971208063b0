"""When a job is tried again after an error, and which policies are refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st
from tenacity import RetryCallState, Retrying, TryAgain

from sqla_jobs import ArgumentsError, DeclarationError
from sqla_jobs.rules.retry import DEFAULT_POLICY, MAX_DELAY, RetryPolicy, check_policy, next_delay
from tests.helpers import as_id


def raised(error: BaseException) -> BaseException:
    """The error as if a task had raised it."""
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - any error at all
        return caught


def delay(policy: RetryPolicy, error: BaseException | None = None, **facts: Any) -> float | None:
    stored: dict[str, Any] = {"attempt": 1, "elapsed": 0.0, **facts}
    return next_delay(policy, raised(error or ValueError("no")), **stored)


class TestDefaultPolicy:
    @pytest.mark.parametrize(("attempt", "seconds"), [(1, 2), (3, 8), (11, 2048), (12, 3600), (10**6, 3600)])
    def test_the_wait_doubles_up_to_an_hour_and_is_spread_by_a_quarter(self, attempt: int, seconds: float) -> None:
        waits = [delay(DEFAULT_POLICY, attempt=attempt) or 0 for _ in range(200)]
        assert seconds * 0.75 <= min(waits) < seconds * 0.85
        assert seconds * 1.15 < max(waits) <= seconds * 1.25

    @pytest.mark.parametrize("policy", [Retrying(), Retrying(stop=tenacity.stop_after_attempt(9))])
    def test_a_policy_without_a_wait_gets_its_backoff_and_no_hot_loop(self, policy: Retrying) -> None:
        assert 1.5 <= (delay(policy) or 0) <= 2.5
        assert 6 <= (delay(policy, attempt=3) or 0) <= 10


def as_the_error_says(state: RetryCallState) -> float:
    error = state.outcome and state.outcome.exception()
    return float(error.args[0]) if error else 0.0


def always(seconds: float) -> Callable[[RetryCallState], float]:
    def wait(state: RetryCallState) -> float:
        return seconds

    return wait


def is_result(result: object) -> bool:
    return True


class TestPolicies:
    """Each strategy sees the attempt and the seconds since the first start, as stored."""

    @pytest.mark.parametrize(
        ("wait", "seconds"),
        [
            (tenacity.wait_incrementing(start=5, increment=10), [5, 15, 25]),
            (as_the_error_says, [4, 4, 4]),
        ],
    )
    def test_wait(self, wait: Any, seconds: list[float]) -> None:
        assert [delay(Retrying(wait=wait), ValueError(4), attempt=attempt) for attempt in (1, 2, 3)] == seconds

    @pytest.mark.parametrize(
        ("wait", "seconds"),
        [
            (tenacity.wait_exponential(), MAX_DELAY),
            (always(float("inf")), MAX_DELAY),
            (always(-5), 0),
        ],
    )
    def test_a_wait_beyond_all_bounds_is_clamped(self, wait: Any, seconds: float) -> None:
        found = delay(Retrying(wait=wait), attempt=100_000)
        assert found == seconds

    def test_a_wait_that_is_no_number_is_the_backoff(self) -> None:
        assert 1.5 <= (delay(Retrying(wait=always(float("nan")))) or 0) <= 2.5

    @given(
        st.sampled_from(
            [tenacity.wait_random(0, 9), tenacity.wait_exponential_jitter(), tenacity.wait_random_exponential()]
        ),
        st.integers(1, 10**6),
        st.floats(0, 1e12),
    )
    def test_every_wait_fits_a_timestamp(self, wait: Any, attempt: int, elapsed: float) -> None:
        found = delay(Retrying(wait=wait), attempt=attempt, elapsed=elapsed)
        assert found is not None
        assert 0 <= found <= MAX_DELAY

    @pytest.mark.parametrize(
        ("retry", "error", "goes_on"),
        [
            (tenacity.retry_if_exception_type(OSError), ValueError(), False),
            (tenacity.retry_if_result(is_result), ValueError(), False),
            (tenacity.retry_never, TryAgain(), True),
        ],
    )
    def test_retry(self, retry: Any, error: BaseException, goes_on: bool) -> None:
        assert (delay(Retrying(retry=retry), error) is not None) == goes_on


def patient(error: BaseException, attempt: int) -> float | timedelta | None:
    if isinstance(error, KeyError):
        return timedelta(minutes=attempt)
    return 10.0 if attempt < 3 else None


@pytest.mark.parametrize(
    ("error", "attempt", "seconds"),
    [(ValueError(), 2, 10.0), (ValueError(), 3, None), (KeyError(), 3, 180.0)],
    ids=as_id,
)
def test_a_function_says_how_long_to_wait(error: Exception, attempt: int, seconds: float | None) -> None:
    assert delay(check_policy(patient), error, attempt=attempt) == seconds


def test_what_the_task_asks_for_goes_before_what_a_function_says() -> None:
    assert delay(patient, attempt=9, is_wanted=True, chosen=5.0) == 5.0
    assert 2.0**9 * 0.75 <= (delay(patient, attempt=9, is_wanted=True) or 0) <= 2.0**9 * 1.25


@pytest.mark.parametrize("wrong", [-1, "soon", float("nan")])
def test_a_delay_that_no_wait_could_have_is_refused(wrong: Any) -> None:
    with pytest.raises(ArgumentsError, match="retry policy"):
        delay(lambda error, attempt: wrong)


def of_the_error_alone(error: BaseException) -> float:
    return 1.0


async def later(error: BaseException, attempt: int) -> float:
    return 1.0


@pytest.mark.parametrize("policy", [3, later, of_the_error_alone, Retrying, tenacity.AsyncRetrying()], ids=as_id)
def test_what_is_no_policy_is_refused(policy: object) -> None:
    with pytest.raises(DeclarationError):
        check_policy(policy)


@pytest.mark.parametrize("part", ["before", "after", "before_sleep", "sleep", "retry_error_callback"])
def test_what_a_policy_would_never_call_is_refused_by_name(part: str) -> None:
    parts: dict[str, Any] = {part: print}
    with pytest.raises(DeclarationError, match=part):
        check_policy(Retrying(**parts))


def test_a_task_that_seeds_the_global_generator_does_not_make_retries_coincide() -> None:
    state = random.getstate()
    waits: set[float | None] = set()
    for _ in range(3):
        random.seed(4)
        waits.add(delay(DEFAULT_POLICY, attempt=9))
    random.setstate(state)
    assert len(waits) == 3
