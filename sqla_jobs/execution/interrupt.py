"""Interrupts task code in another thread. This works only while that code is on the thread's stack.

CPython raises the exception at the thread's next bytecode. A call to C code, such as a long `time.sleep` or a query, is
not interrupted until it returns.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from types import MappingProxyType
from typing import Any, Protocol

from sqla_jobs.rules.error_text import stack_of

log: logging.Logger = logging.getLogger("sqla_jobs.run")

NONE: Mapping[str, Any] = MappingProxyType({})
"""An empty mapping: no keyword arguments."""


class Interrupt(BaseException):
    """Raised in a task's code from outside. It is not an `Exception`, so `except Exception` does not catch it."""

    def __init__(self, *, is_abandoned: bool = False) -> None:
        super().__init__()
        self.is_abandoned = is_abandoned
        """True if the task's own code is still running and may still use its session."""


class TimedOut(Interrupt):
    """The task exceeded its `timeout`."""


class CancelRequested(Interrupt):
    """The job was cancelled while it was running."""


class LeaseGone(Interrupt):
    """The process was considered dead, and its jobs were given to other processes."""


class GivenUp(Interrupt):
    """Another transaction held the job's row for too long while the run wanted to store a step."""


class Stopped(Interrupt):
    """The worker stopped, and the run did not end within the grace period."""


class Interruptible(Protocol):
    """Calls a run's code, and can interrupt that code."""

    def run(
        self, owner: object, function: Callable[..., Any], args: Iterable[Any] = (), kwargs: Mapping[str, Any] = NONE
    ) -> Any:
        """Call `function(…)`. Raises an `Interrupt` only during the call. An interrupt that comes later is dropped."""
        ...

    def interrupt(self, owner: object, kind: type[Interrupt]) -> object:
        """Raise `kind` in the code once, if the code is currently running for `owner`."""
        ...

    def shielded(self) -> AbstractContextManager[None]:
        """Return a context manager for the code to use. Interrupts are held back until the end of its block."""
        ...

    def stack(self) -> str:
        """Return the code's stack, as text."""
        ...


class Body:
    """The interruptible part of a run. Each thread has one `Body`. Flush, fence and commit happen outside this part."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.thread: int = threading.get_ident()
        self._owner: object = None
        self._was_interrupted = False
        self._shielded: object = None
        """The owner of the code while its interrupts are held back."""
        self._held_back: type[Interrupt] | None = None
        """The first interrupt that was held back."""

    def run(
        self, owner: object, function: Callable[..., Any], args: Iterable[Any] = (), kwargs: Mapping[str, Any] = NONE
    ) -> Any:
        """Call `function(…)`. Raises an `Interrupt` only during the call. An interrupt that comes later is dropped."""
        outer = self._owner  # in a test, a task may itself run jobs
        try:
            self._owner = owner
            return function(*args, **kwargs)
        finally:
            while True:
                try:
                    with self._lock:
                        self._owner = outer
                    if self._was_interrupted:
                        self._was_interrupted = False
                        self._take_interrupt()
                except Interrupt:  # it arrived after the function's end, or `_take_interrupt` raised it
                    continue
                break

    def _take_interrupt(self) -> None:
        """Raise an interrupt here. It replaces a pending one, which may not have arrived yet.

        The pending one cannot be withdrawn: CPython 3.11 would look for it forever, and hang once a function is traced.
        """
        _raise_in(self.thread, Interrupt)
        while True:
            pass

    def interrupt(self, owner: object, kind: type[Interrupt]) -> bool:
        """Raise `kind` in the thread if it is currently running code for `owner`. Otherwise return False."""
        with self._lock:
            if self._shielded is owner is not None:
                self._held_back = self._held_back or kind
                return True
            if self._owner is not owner:
                return False
            self._was_interrupted = True
            _raise_in(self.thread, kind)
            self._owner = None  # interrupt only once: the task's code may be cleaning up
            return True

    @contextmanager
    def shielded(self) -> Generator[None]:
        """Hold interrupts back until the end of the block, and then raise the first of them.

        Enter it in the body's thread, inside `run`. An interrupt that is already on its way is raised before the block
        begins.
        """
        with self._lock:
            owner, self._owner = self._owner, None
            self._shielded = owner
        try:
            yield
        finally:
            with self._lock:
                self._shielded, self._owner = None, owner
                kind, self._held_back = self._held_back, None
                if kind is not None:
                    self._owner = None  # interrupt only once, as in `interrupt`
            if kind is not None:
                raise kind

    def stack(self) -> str:
        """Return the thread's stack, as text."""
        frame = sys._current_frames().get(self.thread)
        return stack_of(frame) if frame is not None else "its thread has ended"


class Cancelling:
    """A block of a run's code, in which an interrupt first calls `cancel`, once, in a thread of its own.

    The call is over, and the interrupt is on its way, before the block ends. No call begins after the block.
    """

    def __init__(self, owner: object, cancel: Callable[[], object], outer: Cancelling | None) -> None:
        self.outer = outer
        self._owner = owner
        self._cancel = cancel
        self._has_begun = False
        self._is_open = True
        self._lock = threading.Lock()

    def interrupt(self, deliver: Callable[[], object]) -> None:
        """Call `cancel`, and then `deliver`, which interrupts the code. This does not wait.

        If the system allows no more threads, do nothing: whoever interrupts the code asks again.
        """
        if not self._has_begun:
            with suppress(RuntimeError):
                threading.Thread(target=self._call, args=(deliver,), name="sqla_jobs-cancel", daemon=True).start()
                self._has_begun = True

    def _call(self, deliver: Callable[[], object]) -> None:
        with self._lock:
            if self._is_open:
                self._is_open = False
                try:
                    self._cancel()
                except BaseException:
                    log.exception("%s: what it gave to run.cancelling() failed, and is not called again", self._owner)
            if self.outer is None:
                deliver()
            else:
                self.outer._call(deliver)

    def close(self) -> None:
        """End the block. Wait for a call in progress."""
        with self._lock:
            self._is_open = False


class _Bodies(threading.local):
    def __init__(self) -> None:
        self.body = Body()


_bodies = _Bodies()


def body() -> Body:
    """Return the calling thread's body."""
    return _bodies.body


def _raise_in(thread: int, kind: type[Interrupt]) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(kind))
