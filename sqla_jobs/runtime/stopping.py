"""The wish that a worker stop, from whichever side it comes."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

_ONE_SIGNAL = 0.3
"""Seconds within which a second signal is the same one, sent to the process and to its group."""
_STEP = 0.2
"""Seconds after which a signal is seen at the latest."""


class StopRequest(threading.Event):
    """Set by `stop()`, or by a signal handler: that one must not take a lock which the interrupted wait holds."""

    is_signalled = False
    grace: float = math.inf
    """Seconds that running jobs get, where the one who asks allows fewer than the settings."""

    def is_set(self) -> bool:
        return self.is_signalled or super().is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """In steps, since a signal that arrives just before a wait begins does not end it."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        while not self.is_set() and (left := end - time.monotonic()) > 0:
            super().wait(min(left, _STEP))
        return self.is_set()


@contextmanager
def handled(handlers: Mapping[int, Callable[[int, FrameType | None], None]]) -> Generator[None]:
    """These signals call these handlers within the block; in the main thread, for only there can they be had."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stopped_by_signals(request: StopRequest, *, before_exit: Callable[[], None] = lambda: None) -> Generator[None]:
    """SIGTERM and SIGINT ask for a stop; a second one ends the process at once, after `before_exit`.

    The first also where somebody else has asked before: a service manager signals the children too, and one
    that the parent is replacing, or has just told to stop, goes on to end gracefully.
    """
    signalled_at = 0.0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal signalled_at
        if request.is_signalled and time.monotonic() - signalled_at > _ONE_SIGNAL:
            before_exit()
            os._exit(128 + number)
        signalled_at = time.monotonic()
        request.is_signalled = True

    with handled({signal.SIGTERM: on_signal, signal.SIGINT: on_signal}):
        yield
