"""Interrupts Python code in another thread, and only while a task's own code is on that thread's stack.

CPython raises the exception at the next bytecode of the thread: a call into C that does not return, such
as a long `time.sleep` or a query under way, is interrupted when it comes back.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

R = TypeVar("R")


class Interrupt(BaseException):
    """Raised inside a task from outside. Not an `Exception`, so that `except Exception` lets it through."""


class TimedOut(Interrupt):
    """The task ran longer than its `timeout`."""


class CancelRequested(Interrupt):
    """Somebody cancelled the job while it ran."""


class Body:
    """The part of a run that may be interrupted; flush, fence and commit lie outside of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._was_interrupted = False

    def run(self, function: Callable[[], R]) -> R:
        """`function()`. Raises an `Interrupt` only from inside of it: one that comes too late is dropped."""
        try:
            with self._lock:
                self._thread = threading.get_ident()
            return function()
        finally:
            self._close()

    def interrupt(self, kind: type[Interrupt]) -> bool:
        """Raise `kind` in the thread that runs the body. False: none does, at this moment."""
        with self._lock:
            if self._thread is None:
                return False
            self._was_interrupted = True
            _raise_in(self._thread, kind)
            self._thread = None  # once is enough: user code may be cleaning up after it
            return True

    def _close(self) -> None:
        while True:
            try:
                with self._lock:
                    self._thread = None
                if self._was_interrupted:
                    _raise_in(threading.get_ident(), None)
            except Interrupt:  # it arrived right here, after the end of the body
                continue
            return


def _raise_in(thread: int, kind: type[Interrupt] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), kind and ctypes.py_object(kind))
