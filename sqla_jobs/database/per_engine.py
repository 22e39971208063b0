"""Objects that a process makes once per engine, such as a thread with a connection. A forked child makes new ones."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import cached_property
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

import sqlalchemy as sa

T = TypeVar("T")


class PerEngine(Generic[T]):
    """One object for each engine, for as long as the engine lives.

    A forked child forgets all these objects, since their threads and connections belong to its parent. Nothing is
    registered before the first object is made, since importing the package must have no side effects.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._forget()

    def of(self, engine: sa.Engine) -> T:
        """Return an engine's object. The first request for an object creates it."""
        self._registered  # noqa: B018 - once
        with self._lock:
            if engine not in self._objects:
                self._objects[engine] = self._make()
            return self._objects[engine]

    def all(self) -> list[T]:
        """Return the objects that were made in this process."""
        return list(self._objects.values())

    @cached_property
    def _registered(self) -> None:
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._objects: WeakKeyDictionary[sa.Engine, T] = WeakKeyDictionary()
        self._lock = threading.Lock()
