"""Retry loops, which log the first error, wait longer after each further one, and log the recovery."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

import psycopg
import tenacity
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from sqla_jobs.database.engines import check_writable
from sqla_jobs.rules.error_text import message_of

T = TypeVar("T")
log: logging.Logger = logging.getLogger("sqla_jobs.worker")


class RetryLoop:
    """Repeats calls until they succeed or `stop` is set. tenacity chooses the waits; `longest` is their maximum.

    A call that has nothing to do succeeds although the server is down. So if there is a `server`, a call is repeated
    only once the server accepts writes.
    """

    def __init__(self, what: str, stop: threading.Event, *, longest: float = 5.0, server: Engine | None = None) -> None:
        self.trouble: str | None = None
        """The last error while calls are failing, otherwise None."""
        self._what = what
        self._server = server
        self._retrying = tenacity.Retrying(
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=longest),
            sleep=tenacity.sleep_using_event(stop),
            stop=tenacity.stop_when_event_set(stop),
            before_sleep=self._say_once,
            reraise=True,
        )

    def call(self, step: Callable[[], T]) -> T:
        """Call `step` until it succeeds. Raises the last error from `step` if `stop` is set first."""
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
            if self._server is not None:
                with self._server.connect() as connection:
                    check_writable(connection)
            return step()

        result = self._retrying(again)
        self.trouble = None
        tries = self._retrying.statistics.get("attempt_number", 1)
        if tries > 1:
            log.info("%s works again after %d tries", self._what, tries)
        return result

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
