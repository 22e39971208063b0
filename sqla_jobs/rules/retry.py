"""The delay before a retry, which tenacity's strategies compute from stored facts."""

from __future__ import annotations

import math
import random
import time

import tenacity
from tenacity.after import after_nothing
from tenacity.before import before_nothing
from tenacity.nap import sleep as tenacity_sleep
from tenacity.wait import wait_base, wait_none

from sqla_jobs.errors import DeclarationError

MAX_DELAY = 365 * 86400.0
"""The maximum wait in seconds. Longer waits are clamped."""


_RANDOM = random.SystemRandom()
"""A separate generator: a task may seed the global one, and its retries would then have equal delays."""


class wait_backoff(wait_base):
    """Waits 2, 4, 8 … seconds, at most an hour. Each wait varies by ± 25 %, so that retries spread out."""

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        attempt = retry_state.attempt_number
        return (2.0**attempt if attempt < 12 else 3600.0) * _RANDOM.uniform(0.75, 1.25)


BACKOFF = wait_backoff()
DEFAULT_POLICY = tenacity.Retrying(retry=tenacity.retry_if_exception_type(BaseException), wait=BACKOFF)
"""Retries every exception, until `max_attempts`."""


def check_policy(policy: object) -> tenacity.BaseRetrying:
    """Return the policy. Raises `DeclarationError` if a part of the policy could never take effect in a job."""
    if isinstance(policy, tenacity.AsyncRetrying) or not isinstance(policy, tenacity.BaseRetrying):
        raise DeclarationError(
            f"retry={policy!r} is not a tenacity.Retrying: write retry=tenacity.Retrying(stop=…, wait=…, retry=…)"
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
    policy: tenacity.BaseRetrying,
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
