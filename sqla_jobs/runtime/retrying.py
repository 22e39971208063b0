"""Retry loops, which log the first error, wait longer after each further one, and log the recovery."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import psycopg
import sqlalchemy as sa
import tenacity
from sqlalchemy.exc import SQLAlchemyError

from sqla_jobs.database.engines import check_writable
from sqla_jobs.database.outages import is_outage
from sqla_jobs.database.subscribers import notify_here
from sqla_jobs.rules.error_text import message_of

T = TypeVar("T")
log: logging.Logger = logging.getLogger("sqla_jobs.worker")

RECOVERED = "=recovered"
"""The channel for the news that a loop of this process has found that an outage is over."""
_LOOK = 0.1
"""Seconds between looks for that, in a pause."""


class _Latest:
    recovery: object = object()
    """Replaced when an outage is over."""


def end_pauses() -> None:
    """Let all loops of this process that wait after an error try again now: an outage is over."""
    _Latest.recovery = object()


class RetryLoop:
    """Repeats calls until they succeed or `stop` is set. tenacity chooses the waits; `longest` is their maximum.

    A call that has nothing to do succeeds although the server is down. So if there is a `server`, a call is repeated
    only once the server accepts writes.

    A pause ends early if an outage was over after the last call began: another loop has found that.
    """

    def __init__(
        self, what: str, stop: threading.Event, *, longest: float = 5.0, server: sa.Engine | None = None
    ) -> None:
        self.trouble: str | None = None
        """The last error while calls are failing, otherwise None."""
        self._what = what
        self._server = server
        self._stop = stop
        self._seen = _Latest.recovery
        """The latest recovery when the last call began."""
        self._retrying = tenacity.Retrying(
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=longest),
            sleep=self._pause,
            stop=tenacity.stop_when_event_set(stop),
            before_sleep=self._say_once,
            reraise=True,
        )

    def call(self, step: Callable[[], T]) -> T:
        """Call `step` until it succeeds. Raises the last error from `step` if `stop` is set first."""
        self._seen = _Latest.recovery
        try:
            return step()
        except Exception as error:  # noqa: BLE001 - tenacity handles errors; it is not called without one
            return self._go_on(step, error)

    def _go_on(self, step: Callable[[], T], error: Exception) -> T:
        """Retry `step` after its first call has failed with `error`."""
        failed: list[Exception] = [error]

        def again() -> T:
            if failed:
                raise failed.pop()
            self._seen = _Latest.recovery
            if self._server is not None:
                with self._server.connect() as connection:
                    check_writable(connection)
            return step()

        result = self._retrying(again)
        self.trouble = None
        tries = self._retrying.statistics.get("attempt_number", 1)
        if tries > 1:
            log.info("%s works again after %d tries", self._what, tries)
            if is_outage(error):
                end_pauses()
                notify_here(RECOVERED, "")
        return result

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._seen is _Latest.recovery and (left := until - time.monotonic()) > 0:
            if self._stop.wait(min(left, _LOOK)):
                return

    def run(self, step: Callable[[], T]) -> T | None:
        """Call `step` until it succeeds. If `stop` is set first, log the last error from `step` and return None."""
        try:
            return self.call(step)
        except Exception as error:
            message = "%s still failed when it was stopped: %s"
            log.error(message, self._what, _first_line(error), exc_info=_trace(error))  # noqa: TRY400
            return None

    def _say_once(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        self.trouble = f"{type(error).__name__}: {'' if error is None else _first_line(error)}"
        if state.attempt_number == 1:
            log.error(
                "%s failed, and is tried again until it works: %s: %s",
                self._what,
                type(error).__name__,
                "" if error is None else _first_line(error),
                exc_info=_trace(error),
            )


def _first_line(error: BaseException) -> str:
    return (message_of(error).strip().splitlines() or [""])[0]


def _trace(error: BaseException | None) -> BaseException | None:
    """Return the error if its traceback may be logged. A database error's traceback could reveal application data."""
    return None if isinstance(error, psycopg.Error | SQLAlchemyError) else error
