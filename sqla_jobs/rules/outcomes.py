"""What an attempt came to: decided purely here, stored in one place (`queries.finish`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

import tenacity

from sqla_jobs.rules.error_text import message_of, traceback_of
from sqla_jobs.rules.redaction import NOTHING, Secrets
from sqla_jobs.rules.retry import MAX_DELAY, next_delay

MAX_MESSAGE = 10_000
MAX_TRACEBACK = 50_000
"""Characters kept of an error's message and of its traceback."""


class Snooze(Exception):
    """Raised by a task to come back in `seconds` without using up an attempt."""

    def __init__(self, seconds: float | timedelta) -> None:
        wait = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
        if not isinstance(wait, int | float) or not 0 <= wait < math.inf:
            raise ValueError(f"Snooze takes a finite number of seconds, at least 0, got {seconds!r:.60}")
        self.seconds = float(min(wait, MAX_DELAY))
        super().__init__(f"come back in {self.seconds:g} s")


class Cancel(Exception):
    """Raised by a task to end its job as `cancelled`, for `reason`."""

    def __init__(self, reason: str = "") -> None:
        self.reason = str(reason)
        super().__init__(self.reason)


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception in words that PostgreSQL can store."""

    type: str
    message: str
    traceback: str | None = None

    @classmethod
    def of(cls, error: BaseException, *, secrets: Secrets = NOTHING) -> Failure:
        """`error` described, without secrets and without data of the application's that the database shows."""
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"

        def clean(text: str) -> str:
            return storable(secrets.text(text), MAX_MESSAGE)

        return cls(
            storable(name, 500),
            clean(message_of(error)),
            storable(secrets.text(traceback_of(error, clean)), MAX_TRACEBACK, keep_end=True),
        )


def storable(text: str, limit: int, *, keep_end: bool = False) -> str:
    """`text` without what PostgreSQL's text refuses (NUL, lone surrogates), cut to `limit` with a mark."""
    cut = len(text) - limit
    if cut > 0:
        mark = f"… [{cut:,} characters left out] …"
        text = mark + text[-limit:] if keep_end else text[:limit] + mark
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True, slots=True)
class Succeeded:
    """`result` is JSON text, `None` for a task that returned `None`."""

    result: str | None = None


@dataclass(frozen=True, slots=True)
class Retried:
    """Failed, and due again `delay` seconds after that."""

    delay: float
    failure: Failure


@dataclass(frozen=True, slots=True)
class Snoozed:
    """Asked to come back in `delay` seconds; the attempt is given back."""

    delay: float


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Ended on purpose."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Failed:
    """Ended for good."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Released:
    """Claimed but never started: given back without a run, to be due at once or in `delay` seconds."""

    delay: float | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """Started, and its worker stopped before the end."""

    failure: Failure


Outcome = Succeeded | Retried | Snoozed | Cancelled | Failed | Released | Lost


def word(outcome: Outcome) -> str:
    """What rows and logs call it."""
    return type(outcome).__name__.lower()


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
    raises ends it too, and both errors are told.
    """
    if isinstance(error, Snooze):
        return Snoozed(error.seconds)
    if isinstance(error, Cancel):
        return Cancelled(Failure("Cancel", storable(secrets.text(error.reason), MAX_MESSAGE)))
    failure = Failure.of(error, secrets=secrets)
    if attempt >= max_attempts:
        return Failed(failure)
    try:
        delay = next_delay(policy, error, attempt=attempt, elapsed=elapsed)
    except Exception as broken:  # noqa: BLE001 - whatever a policy raises is told with what the task raised
        broken.__context__ = error
        return Failed(Failure.of(broken, secrets=secrets))
    return Failed(failure) if delay is None else Retried(delay, failure)
