"""The delay before a retry, which tenacity's strategies compute from stored facts."""

from __future__ import annotations

import inspect
import math
import random
import time
from collections.abc import Callable
from datetime import timedelta
from typing import cast

import tenacity
from tenacity.after import after_nothing
from tenacity.before import before_nothing
from tenacity.nap import sleep as tenacity_sleep
from tenacity.wait import wait_base, wait_none

from sqla_jobs.errors import DeclarationError
from sqla_jobs.rules.value_checks import check_seconds

MAX_DELAY = 365 * 86400.0
"""The maximum wait in seconds. Longer waits are clamped."""


_RANDOM = random.SystemRandom()
"""A separate generator: a task may seed the global one, and its retries would then have equal delays."""


def backoff(attempt: int) -> float:
    """Return the seconds after this attempt by the default policy."""
    return (2.0**attempt if attempt < 12 else 3600.0) * _RANDOM.uniform(0.75, 1.25)


class wait_backoff(wait_base):
    """Waits 2, 4, 8 … seconds, at most an hour. Each wait varies by ± 25 %, so that retries spread out."""

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        return backoff(retry_state.attempt_number)


BACKOFF = wait_backoff()
DEFAULT_POLICY = tenacity.Retrying(retry=tenacity.retry_if_exception_type(BaseException), wait=BACKOFF)
"""Retries every exception, until `max_attempts`."""


RetryPolicy = tenacity.BaseRetrying | Callable[[BaseException, int], float | timedelta | None]
"""A tenacity `Retrying`, or a function of the error and the number of the attempt, counted from 1.

The function returns the time until the next attempt, as a timedelta or in seconds, or None for no retry.
"""


def check_policy(policy: object) -> RetryPolicy:
    """Return the policy. Raises `DeclarationError` if a part of the policy could never take effect in a job."""
    is_awaited = inspect.iscoroutinefunction(policy) or isinstance(policy, tenacity.AsyncRetrying)
    if not isinstance(policy, tenacity.BaseRetrying | type) and callable(policy) and not is_awaited:
        try:
            inspect.signature(policy).bind(None, 1)
        except TypeError as error:
            raise DeclarationError(
                f"retry={policy!r:.100} is called with the error and the number of the attempt ({error}): write a "
                "function such as retry=lambda error, attempt: 10.0 if attempt < 5 else None"
            ) from None
        return cast("RetryPolicy", policy)
    if not isinstance(policy, tenacity.BaseRetrying) or is_awaited:
        raise DeclarationError(
            f"retry={policy!r:.100} is no policy: write retry=tenacity.Retrying(stop=…, wait=…, retry=…), or a "
            "function such as retry=lambda error, attempt: 10.0 if attempt < 5 else None"
        )
    callbacks = {
        "before": policy.before is not before_nothing,
        "after": policy.after is not after_nothing,
        "before_sleep": policy.before_sleep is not None,
        "retry_error_callback": policy.retry_error_callback is not None,
        "sleep": policy.sleep is not tenacity_sleep,
    }
    if used := [name for name, given in callbacks.items() if given]:
        raise DeclarationError(
            f"retry=Retrying({', '.join(used)}=…) would never be called: a job waits in the database "
            "and not in the worker, so only stop, wait and retry take effect; remove the others"
        )
    return policy


def next_delay(
    policy: RetryPolicy,
    error: BaseException,
    *,
    attempt: int,
    elapsed: float,
    is_wanted: bool = False,
    chosen: float | None = None,
) -> float | None:
    """Return the seconds before the next attempt, from 0 to `MAX_DELAY`; `None` for no retry.

    `attempt` counts from 1; `elapsed` is the number of seconds since the job was first started. The order is
    tenacity's own: `retry`, then `wait`, then `stop` (which may use the upcoming wait). `is_wanted` replaces the
    answer of `retry`, and `chosen` that of `wait`: the task itself has asked for the next attempt.
    """
    if not isinstance(policy, tenacity.BaseRetrying):
        return _delay_of(policy, error, attempt, is_wanted=is_wanted, chosen=chosen)
    state = tenacity.RetryCallState(policy, fn=None, args=(), kwargs={})
    state.attempt_number = attempt
    state.start_time = time.monotonic() - elapsed
    state.set_exception((type(error), error, error.__traceback__))
    if not (is_wanted or isinstance(error, tenacity.TryAgain) or policy.retry(state)):
        return None
    wait = BACKOFF if isinstance(policy.wait, wait_none) else policy.wait
    delay = float(wait(state)) if chosen is None else chosen
    if math.isnan(delay):
        delay = BACKOFF(state)
    vars(state)["upcoming_sleep"] = delay  # tenacity uses it from version 8.4 on
    if policy.stop and policy.stop(state):
        return None
    return min(max(delay, 0.0), MAX_DELAY)


def _delay_of(
    policy: Callable[[BaseException, int], float | timedelta | None],
    error: BaseException,
    attempt: int,
    *,
    is_wanted: bool,
    chosen: float | None,
) -> float | None:
    """Return the seconds that a function gives, or that the task has asked for."""
    given = policy(error, attempt) if chosen is None else chosen
    if given is None:
        return backoff(attempt) if is_wanted else None
    return min(check_seconds("the delay of the retry policy", given), MAX_DELAY)
