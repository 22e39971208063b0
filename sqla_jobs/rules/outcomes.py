"""What an attempt came to: decided purely here, stored in one place (`queries.finish`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import Literal, Self

import tenacity

from sqla_jobs.rules.error_text import leaves, message_of, traceback_of
from sqla_jobs.rules.redaction import NOTHING, Secrets
from sqla_jobs.rules.retry import MAX_DELAY, next_delay


class RunOutcome(StrEnum):
    """The outcome of one attempt."""

    succeeded = "succeeded"
    """The task returned."""
    failed = "failed"
    """The task raised an exception, and is not tried again."""
    cancelled = "cancelled"
    """Somebody cancelled the job, the task raised `Cancel`, or a row among its arguments is gone."""
    retried = "retried"
    """The task raised an exception, and is tried again."""
    snoozed = "snoozed"
    """The task raised `Snooze`; the attempt does not count."""
    lost = "lost"
    """The process of the attempt died or lost the job."""


MAX_MESSAGE = 10_000
MAX_TRACEBACK = 50_000
"""Characters kept of an error's message and of its traceback."""


class Snooze(Exception):
    """Raised by a task to run again later without using up an attempt. The run's session is rolled back.

    - `seconds`: seconds or a timedelta, at least 0, counted from the end of the run.

    Raises `ValueError` for what is no finite number of seconds.
    """

    def __init__(self, seconds: float | timedelta) -> None:
        wait = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
        if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait < math.inf:
            raise ValueError(f"Snooze takes a finite number of seconds, at least 0, got {seconds!r:.60}")
        self.seconds: float = float(min(wait, MAX_DELAY))
        super().__init__(f"come back in {self.seconds:g} s")


class Cancel(Exception):
    """Raised by a task to end its job as `cancelled`. The run's session is rolled back.

    - `reason`: text for people, stored as the error of the run.
    """

    def __init__(self, reason: str = "") -> None:
        self.reason: str = str(reason)
        super().__init__(self.reason)


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception in words that PostgreSQL can store."""

    type: str
    message: str
    traceback: str | None = None

    @classmethod
    def of(cls, error: BaseException, *, secrets: Secrets = NOTHING) -> Failure:
        """`error` described, without secrets and without data of the application's that the database shows.

        A group of one error, such as an `asyncio.TaskGroup` raises, has the type and message of that one.
        """
        raised = leaves(error)
        told = raised[0] if len(raised) == 1 else error

        def clean(text: str) -> str:
            return storable(secrets.text(text), MAX_MESSAGE)

        return cls(
            storable(type_name(type(told)), 500),
            clean(message_of(told)),
            storable(secrets.text(traceback_of(error, clean)), MAX_TRACEBACK, keep_end=True),
        )


def type_name(kind: type[BaseException]) -> str:
    """What logs and runs call a kind of exception: `ValueError`, `shop.errors.Refused`."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def storable(text: str, limit: int, *, keep_end: bool = False) -> str:
    """`text` without what PostgreSQL's text refuses (NUL, lone surrogates), cut to `limit` with a mark."""
    cut = len(text) - limit
    if cut > 0:
        mark = f"… [{cut:,} characters left out] …"
        text = mark + text[-limit:] if keep_end else text[:limit] + mark
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt came to, and what follows. Made by one of the class methods."""

    kind: RunOutcome | Literal["released"]
    """What rows and logs call it. One that is released was never begun, and leaves no run."""
    result: str | None = None
    """JSON text; `None` for a task that returned `None`."""
    delay: float | None = None
    """Seconds after the end until the job is due again; `None`: at once, or never."""
    failure: Failure | None = None
    erases: bool = False
    """True if the job's arguments are erased in the statement or transaction that stores the end."""

    @classmethod
    def succeeded(cls, result: str | None = None) -> Outcome:
        """The task returned."""
        return SUCCEEDED if result is None else cls(RunOutcome.succeeded, result=result)

    @classmethod
    def retried(cls, delay: float, failure: Failure) -> Self:
        """It failed, and is due again `delay` seconds after that."""
        return cls(RunOutcome.retried, delay=delay, failure=failure)

    @classmethod
    def snoozed(cls, delay: float) -> Self:
        """It asked to come back in `delay` seconds; the attempt is given back."""
        return cls(RunOutcome.snoozed, delay=delay)

    @classmethod
    def cancelled(cls, failure: Failure) -> Self:
        """It ended on purpose."""
        return cls(RunOutcome.cancelled, failure=failure)

    @classmethod
    def failed(cls, failure: Failure) -> Self:
        """It ended for good."""
        return cls(RunOutcome.failed, failure=failure)

    @classmethod
    def lost(cls, failure: Failure) -> Self:
        """It was begun, and its worker stopped before the end."""
        return cls(RunOutcome.lost, failure=failure)

    @classmethod
    def released(cls, delay: float | None = None) -> Self:
        """It was claimed and never begun: given back without a run, to be due at once or in `delay` seconds."""
        return cls("released", delay=delay)


SUCCEEDED = Outcome(RunOutcome.succeeded)
"""That of each task that returned `None`."""
ERASED = Outcome(RunOutcome.succeeded, erases=True)
"""That of each task that returned, and whose jobs are erased on success."""


def decide(
    error: BaseException,
    *,
    policy: tenacity.BaseRetrying,
    attempt: int,
    max_attempts: int,
    elapsed: float,
    secrets: Secrets = NOTHING,
) -> Outcome:
    """What follows from `error`, raised by attempt number `attempt`, `elapsed` seconds after the first start.

    Whichever of the policy's `stop` and `max_attempts` comes first ends the job. A policy that itself
    raises ends it too, and both errors are told. Of a group, such as an `asyncio.TaskGroup` raises, a `Cancel` decides,
    else a `Snooze`; otherwise the policy must accept each of its errors. The longest wait counts.
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
        delays = [next_delay(policy, one, attempt=attempt, elapsed=elapsed) for one in raised]
    except Exception as broken:  # noqa: BLE001 - whatever a policy raises is told with what the task raised
        broken.__context__ = error
        of_policy = Failure.of(broken, secrets=secrets)
        why = f"It is not tried again: its retry policy raised {of_policy.type}: {of_policy.message}"
        return Outcome.failed(replace(failure, message=f"{failure.message}\n{why}", traceback=of_policy.traceback))
    accepted = [delay for delay in delays if delay is not None]
    return Outcome.retried(max(accepted), failure) if len(accepted) == len(delays) else Outcome.failed(failure)
