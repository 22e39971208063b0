"""The outcomes of attempts. `decide` determines them without I/O, and `queries.finish` stores them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import Literal, Self

from sqla_jobs.rules.error_text import leaves, message_of, traceback_of
from sqla_jobs.rules.redaction import NOTHING, Secrets
from sqla_jobs.rules.retry import MAX_DELAY, RetryPolicy, next_delay
from sqla_jobs.rules.wording import plural


class RunOutcome(StrEnum):
    """The outcome of one attempt."""

    succeeded = "succeeded"
    """The task returned."""
    failed = "failed"
    """The task raised an exception, and no retry follows."""
    cancelled = "cancelled"
    """The job was cancelled or has expired, the task raised `Cancel`, or a row among its arguments is gone."""
    retried = "retried"
    """The task raised an exception, and a retry follows."""
    snoozed = "snoozed"
    """The task raised `Snooze`, sleeps or waits, its row was held for too long, or a row among its arguments was not
    there yet; the attempt does not count."""
    lost = "lost"
    """The attempt's process died or lost the job."""


MAX_MESSAGE = 10_000
MAX_TRACEBACK = 50_000
"""The maximum lengths, in characters, of a stored message and of a stored traceback."""


MISFIT = "Misfit"
"""The error type of a run whose job was given back, since its arguments do not fit the code of its worker."""
KEY_MISSING = "Undecryptable"
"""The error type of a run whose job was given back, since its worker lacks the key of a stored value."""
ROW_MISSING = "EntityGone"
"""The error type of a run that found no row for one of its arguments."""
ROWS_COME_WITHIN = 4.0
"""Seconds from a job's first start within which a missing row is looked for again.

A cluster of databases may commit the row a moment after the job.
"""

_SHORTEST_SNOOZE = 0.1
"""No `max_attempts` ends a loop of snoozes, so without a shortest wait it would keep the server busy."""


class Snooze(Exception):
    """Raised by a task to run again later without using up an attempt. The run's session is rolled back.

    - `seconds`: seconds or a timedelta, at least 0, counted from the end of the run. Less than 0.1 s becomes 0.1 s.

    Raises `ValueError` unless the number of seconds is finite and at least 0.
    """

    def __init__(self, seconds: float | timedelta) -> None:
        self.seconds: float = max(_wait("Snooze", seconds), _SHORTEST_SNOOZE)
        super().__init__(f"come back in {self.seconds:g} s")


class Retry(Exception):
    """Raised by a task whose attempt failed as expected, to choose the delay before the next attempt.

    The attempt counts, and the run's session is rolled back. The run ends as `retried`, and is logged at INFO. After
    `max_attempts`, or when the policy's `stop` applies, the job ends as `failed`. The policy's `retry` is not asked.
    The run's error contains the text of the cause in `raise Retry(…) from error`.

    - `delay`: seconds or a timedelta, at least 0, counted from the end of the run. None waits as the policy does.
    - `reason`: human-readable text, stored as the error of the run.

    Raises `ValueError` unless the number of seconds is finite and at least 0.
    """

    def __init__(self, delay: float | timedelta | None = None, reason: str = "") -> None:
        self.delay: float | None = None if delay is None else _wait("Retry", delay, ", or None")
        self.reason: str = str(reason)
        after = "" if self.delay is None else f" in {self.delay:g} s"
        super().__init__(self.reason or f"try again{after}")


def _wait(raised: str, delay: float | timedelta, or_else: str = "") -> float:
    """Return a delay in seconds, at most `MAX_DELAY`. Raises `ValueError`."""
    wait = delay.total_seconds() if isinstance(delay, timedelta) else delay
    if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait < math.inf:
        raise ValueError(f"{raised} takes a finite number of seconds, at least 0{or_else}, got {delay!r:.60}")
    return float(min(wait, MAX_DELAY))


def is_retry(error: BaseException) -> bool:
    """Return whether the error is a `Retry`, or a group of nothing else."""
    return all(isinstance(one, Retry) for one in leaves(error))


class Cancel(Exception):
    """Raised by a task to end its job as `cancelled`. The run's session is rolled back.

    - `reason`: human-readable text, stored as the error of the run.
    """

    def __init__(self, reason: str = "") -> None:
        self.reason: str = str(reason)
        super().__init__(self.reason)


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception as texts that PostgreSQL can store."""

    type: str
    message: str
    traceback: str | None = None

    @property
    def is_expected(self) -> bool:
        """True if the task raised `Retry`. Log lines show its traceback only at DEBUG."""
        return self.type == _RETRY

    @classmethod
    def of(cls, error: BaseException, *, secrets: Secrets = NOTHING) -> Failure:
        """Describe `error` without secrets, and without the application's data that database errors show.

        A group of one error, which `asyncio.TaskGroup` may raise, is described by that error's type and message.
        """
        raised = leaves(error)
        shown = raised[0] if len(raised) == 1 else error

        def clean(text: str) -> str:
            return secrets.text(storable(text, MAX_MESSAGE))

        return cls(
            storable(_RETRY if is_retry(error) else type_name(type(shown)), 500),
            clean(_with_cause(shown) if isinstance(shown, Retry) else message_of(shown)),
            secrets.text(storable(traceback_of(error, clean), MAX_TRACEBACK, keep_end=True)),
        )


_RETRY = "Retry"
"""The type of the failures that tasks ask for."""


def _with_cause(error: Retry) -> str:
    """Return the text of a `Retry`, with the error that it was raised from."""
    said, cause = message_of(error), error.__cause__
    return said if cause is None else f"{said}: {type_name(type(cause))}: {message_of(cause)}"


def type_name(kind: type[BaseException]) -> str:
    """Return the name of an exception's type for logs and runs: `ValueError`, `shop.errors.Refused`."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def storable(text: str, limit: int, *, keep_end: bool = False) -> str:
    """Cut `text` to `limit` characters, with a mark. Escape NUL and lone surrogates, which PostgreSQL refuses."""
    cut = len(text) - limit
    if cut > 0:
        mark = f"… [{plural(cut, 'character')} left out] …"
        text = mark + text[-limit:] if keep_end else text[:limit] + mark
    return text.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of an attempt and its consequences. Use one of the class methods to make it."""

    kind: RunOutcome | Literal["released"]
    """The outcome's name in rows and logs. A released attempt was never started and leaves no run."""
    result: str | None = None
    """JSON text; `None` for a task that returned `None`."""
    delay: float | None = None
    """Seconds from the end until the job is due again; `None` if it is due immediately, or never."""
    failure: Failure | None = None
    erases: bool = False
    """True if the job's arguments are erased in the statement or transaction that stores the end."""

    @classmethod
    def succeeded(cls, result: str | None = None) -> Outcome:
        """Return the outcome of a task that returned."""
        return SUCCEEDED if result is None else cls(RunOutcome.succeeded, result=result)

    @classmethod
    def retried(cls, delay: float, failure: Failure) -> Self:
        """Return the outcome of a failed attempt that is retried after `delay` seconds."""
        return cls(RunOutcome.retried, delay=delay, failure=failure)

    @classmethod
    def snoozed(cls, delay: float) -> Self:
        """Return the outcome of a snooze for `delay` seconds. A snooze does not use up an attempt."""
        return cls(RunOutcome.snoozed, delay=delay)

    @classmethod
    def cancelled(cls, failure: Failure) -> Self:
        """Return the outcome of a cancelled attempt."""
        return cls(RunOutcome.cancelled, failure=failure)

    @classmethod
    def failed(cls, failure: Failure) -> Self:
        """Return the outcome of a failed attempt that is not retried."""
        return cls(RunOutcome.failed, failure=failure)

    @classmethod
    def lost(cls, failure: Failure) -> Self:
        """Return the outcome of a started attempt whose worker stopped before the attempt ended."""
        return cls(RunOutcome.lost, failure=failure)

    @classmethod
    def released(cls, delay: float | None = None) -> Self:
        """Return the outcome of a claimed attempt that was never started. Its job is due now or in `delay` seconds."""
        return cls("released", delay=delay)


SUCCEEDED = Outcome(RunOutcome.succeeded)
"""The outcome of each task that returned `None`."""
ERASED = Outcome(RunOutcome.succeeded, erases=True)
"""The outcome of each task that returned, if its jobs are erased on success."""


EXPIRY = Failure("Expired", "it had not begun by its expires_at")
EXPIRED = Outcome.cancelled(EXPIRY)
"""The outcome of a claimed job that may no longer begin. It does not use up an attempt."""


def decide(
    error: BaseException,
    *,
    policy: RetryPolicy,
    attempt: int,
    max_attempts: int,
    elapsed: float,
    secrets: Secrets = NOTHING,
) -> Outcome:
    """Return the outcome of attempt number `attempt`, which raised `error`.

    `elapsed` is the number of seconds since the job's first start. The job ends when the policy's `stop` applies or
    `max_attempts` is reached, whichever comes first. A policy that raises an error also ends the job, and the failure
    shows both errors. `error` may be a group, such as `asyncio.TaskGroup` raises. In a group, a `Cancel` takes
    precedence, then a `Snooze`. Otherwise the job is retried only if the policy accepts each of the errors other than
    `Retry`, and after the longest of the waits.
    """
    raised = leaves(error)
    for one in raised:
        if isinstance(one, Cancel):
            return Outcome.cancelled(Failure("Cancel", storable(secrets.text(one.reason), MAX_MESSAGE)))
    if snoozes := [one.seconds for one in raised if isinstance(one, Snooze)]:
        return Outcome.snoozed(max(snoozes))
    failure = Failure.of(error, secrets=secrets)
    if attempt >= max_attempts:
        return Outcome.failed(failure)
    try:
        delays = [
            next_delay(
                policy,
                one,
                attempt=attempt,
                elapsed=elapsed,
                is_wanted=isinstance(one, Retry),
                chosen=one.delay if isinstance(one, Retry) else None,
            )
            for one in raised
        ]
    except Exception as broken:  # noqa: BLE001 - the failure shows the policy's error with the task's
        broken.__context__ = error
        of_policy = Failure.of(broken, secrets=secrets)
        why = f"The job is not retried: its retry policy raised {of_policy.type}: {of_policy.message}"
        return Outcome.failed(replace(failure, message=f"{failure.message}\n{why}", traceback=of_policy.traceback))
    accepted = [delay for delay in delays if delay is not None]
    return Outcome.retried(max(accepted), failure) if len(accepted) == len(delays) else Outcome.failed(failure)
