"""A stop request, from a signal, the parent process or the embedding program."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from types import FrameType
from typing import Any

_ONE_SIGNAL = 0.3
"""Seconds within which two signals count as one: one may be sent to the process and one to its group."""
_STEP = 0.2
"""The longest time, in seconds, that a waiting thread takes to notice a signal."""
_replaced: list[Mapping[int, Any]] = []
"""The handlers that `handled` has replaced, by signal, the outermost block first."""
_masks = threading.local()
"""Each thread's signal mask before the fork that it is about to make."""


class StopRequest(threading.Event):
    """A stop request.

    A signal handler sets `is_signalled`, since it must not take the lock that the interrupted `wait` may hold.
    """

    is_signalled = False
    has_failed: bool = False
    """True if an error stops the service, so that its program ends with 1."""
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

    Do nothing outside the main thread, where signals cannot be handled. A process that is forked within the block gets
    the earlier handlers back: ours only request a stop that the process does not look for, so it would ignore SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _restore_after_forks()
    before: dict[int, Any] = {number: signal.getsignal(number) for number in handlers}
    _replaced.append(before)  # first, since another thread may fork at any time
    for number, handler in handlers.items():
        signal.signal(number, handler)
    try:
        yield
    finally:
        _restore(before)
        _replaced.pop()


def _restore(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _hold_back() -> None:
    """Let no signal reach this thread, and thus a new process, where Python would lose it before `_restore_all`."""
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, {number for one in _replaced for number in one})


def _let_through() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _restore_all() -> None:
    for handlers in reversed(_replaced):
        _restore(handlers)
    _let_through()


@cache
def _restore_after_forks() -> None:
    os.register_at_fork(before=_hold_back, after_in_parent=_let_through, after_in_child=_restore_all)


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


def in_turn(*parts: Callable[[], object]) -> None:
    """Call all `parts` in this order, although some fail. Then raise the last error, with the others as context."""
    with ExitStack() as calls:
        for part in reversed(parts):
            calls.callback(part)
