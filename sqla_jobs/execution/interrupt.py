"""Interrupts the code of tasks: here, Python code in another thread, and only while it is on the stack of that thread.

CPython raises the exception at the next bytecode of the thread: a call into C that does not return, such
as a long `time.sleep` or a query under way, is interrupted when it comes back.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from sqla_jobs.rules.error_text import stack_of

NONE: Mapping[str, Any] = MappingProxyType({})
"""No arguments by name."""


class Interrupt(BaseException):
    """Raised inside a task from outside. Not an `Exception`, so that `except Exception` lets it through."""

    def __init__(self, *, is_abandoned: bool = False) -> None:
        super().__init__()
        self.is_abandoned = is_abandoned
        """The task's own code goes on, and may still use its session."""


class TimedOut(Interrupt):
    """The task ran longer than its `timeout`."""


class CancelRequested(Interrupt):
    """Somebody cancelled the job while it ran."""


class LeaseGone(Interrupt):
    """The process was taken for dead: the job is somebody else's."""


class Stopped(Interrupt):
    """The worker stopped, and the run did not end within its grace."""


class Interruptible(Protocol):
    """What a run's own code is called by, and interrupted through."""

    def run(
        self, owner: object, function: Callable[..., Any], args: Iterable[Any] = (), kwargs: Mapping[str, Any] = NONE
    ) -> Any:
        """`function(…)`. Raises an `Interrupt` only from inside of it: one that comes too late is dropped."""
        ...

    def interrupt(self, owner: object, kind: type[Interrupt]) -> object:
        """Raise `kind` in it, while it runs what `owner` has it run; once."""
        ...

    def stack(self) -> str:
        """Its stack, as text."""
        ...


class Body:
    """The part of a run that may be interrupted; flush, fence and commit lie outside of it. A thread has one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.thread: int = threading.get_ident()
        self._owner: object = None
        self._was_interrupted = False

    def run(
        self, owner: object, function: Callable[..., Any], args: Iterable[Any] = (), kwargs: Mapping[str, Any] = NONE
    ) -> Any:
        """`function(…)`. Raises an `Interrupt` only from inside of it: one that comes too late is dropped."""
        outer = self._owner  # a task may itself run jobs, in a test
        try:
            self._owner = owner
            return function(*args, **kwargs)
        finally:
            while True:
                try:
                    with self._lock:
                        self._owner = outer
                    if self._was_interrupted:
                        _raise_in(self.thread, None)
                        self._was_interrupted = False
                except Interrupt:  # it arrived right here, after the end of the function
                    continue
                break

    def interrupt(self, owner: object, kind: type[Interrupt]) -> bool:
        """Raise `kind` in the thread, while it runs what `owner` has it run. False: it does not, at this moment."""
        with self._lock:
            if self._owner is not owner:
                return False
            self._was_interrupted = True
            _raise_in(self.thread, kind)
            self._owner = None  # once is enough: user code may be cleaning up after it
            return True

    def stack(self) -> str:
        """The stack of the thread, as text."""
        frame = sys._current_frames().get(self.thread)  # pyright: ignore[reportPrivateUsage]
        return stack_of(frame) if frame is not None else "its thread has ended"


class _Bodies(threading.local):
    def __init__(self) -> None:
        self.body = Body()


_bodies = _Bodies()


def body() -> Body:
    """That of the calling thread."""
    return _bodies.body


def _raise_in(thread: int, kind: type[Interrupt] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), kind and ctypes.py_object(kind))
