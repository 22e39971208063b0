"""A stop request, from a signal, the parent process or the embedding program."""

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
"""Seconds within which two signals count as one: one may be sent to the process and one to its group."""
_STEP = 0.2
"""The longest time, in seconds, that a waiting thread takes to notice a signal."""


class StopRequest(threading.Event):
    """A stop request.

    A signal handler sets `is_signalled`, since it must not take the lock that the interrupted `wait` may hold.
    """

    is_signalled = False
    grace: float = math.inf
    """The grace that the requester allows, in seconds. The grace in the settings applies if it is shorter."""

    def is_set(self) -> bool:
        return self.is_signalled or super().is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait in short steps, since a signal that arrives just before a wait does not end that wait."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        while not self.is_set() and (left := end - time.monotonic()) > 0:
            super().wait(min(left, _STEP))
        return self.is_set()


@contextmanager
def handled(handlers: Mapping[int, Callable[[int, FrameType | None], None]]) -> Generator[None]:
    """Handle signals with these functions within the block.

    Do nothing outside the main thread, where signals cannot be handled.
    """
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
    """Stop on SIGTERM or SIGINT. A second signal ends the process at once, after `before_exit`.

    The first signal never ends the process at once: a service manager also signals children that their parent is
    already stopping, and these must still end gracefully.
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
