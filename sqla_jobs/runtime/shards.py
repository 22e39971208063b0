"""What a service has at work in each of its databases (shards)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context, copy_context
from functools import partial
from typing import Generic, TypeVar

from sqlalchemy.exc import OperationalError

from sqla_jobs.database.explain import EXPLAINED, explain
from sqla_jobs.database.shard_name import working_in
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.runtime.loop import Loop

T = TypeVar("T")


class Shards(Generic[T]):
    """What a service has at work in each of its databases, by the database's name. A single database has no name."""

    def __init__(
        self,
        names: Collection[str],
        connect: Callable[[str], T],
        begin: Callable[[T], None],
        close: Callable[[T], None],
    ) -> None:
        """Prepare to call `connect`, which returns what is to work, and then `begin`, for each database.

        `close` undoes a `connect` if `begin` fails or is not called.
        """
        self._names = names
        self._connect = connect
        self._begin = begin
        self._close = close
        self.at_work: dict[str, T] = {}
        self._joining: list[Loop] = []
        """A loop for each database that could not be reached at the start."""

    def start(self) -> None:
        """Begin in each database. One that cannot be reached, or written to, is tried again, in its own thread.

        Raises the error of the last database if none can be reached. Any other error while connecting is raised before
        work begins anywhere, with the database's name.
        """
        away: list[str] = []
        connected: list[tuple[str, T]] = []
        try:
            for name in self._names:
                with self._unless_away(name, away):
                    connected.append((name, working_in(name, partial(self._connect, name))))
            while connected:
                name, one = connected.pop(0)
                with self._unless_away(name, away):
                    self._begin_in(name, one)
        except BaseException:
            for name, one in connected:
                working_in(name, partial(self._close, one))
            raise
        for name in away:
            join = partial(self._join_in, copy_context(), name)  # includes variables that worker contexts have set
            self._joining.append(Loop(f"connecting to the database {name!r}", join, name="sqla_jobs-join"))
            self._joining[-1].start()

    @contextmanager
    def _unless_away(self, name: str, away: list[str]) -> Generator[None]:
        """Add a database that cannot be reached to `away`, unless it is the last. Name it in other errors."""
        try:
            yield
        except OperationalError:
            away.append(name)
            if len(away) == len(self._names):
                raise
        except EXPLAINED as error:
            if not name:
                raise
            raise ConfigurationError(f"[{name}] {explain(error)}") from error

    def _begin_in(self, name: str, one: T) -> None:
        try:
            working_in(name, partial(self._begin, one))
        except BaseException:
            working_in(name, partial(self._close, one))
            raise
        self.at_work[name] = one

    def _join_in(self, context: Context, name: str) -> float:
        one = context.run(working_in, name, partial(self._connect, name))
        if any(loop.stopping.is_set() for loop in self._joining):
            working_in(name, partial(self._close, one))
        else:
            context.run(self._begin_in, name, one)
        return math.inf

    @property
    def away(self) -> list[str]:
        """The names of the databases that could not be reached yet."""
        return [name for name in self._names if name not in self.at_work]

    def each(self) -> list[T]:
        """Return what is at work, in all databases that could be reached."""
        return [*self.at_work.values()]

    def stop(self, stop: Callable[[T], None], *, patience: float) -> None:
        """Call `stop` for all that is at work, side by side. A connection in progress may take `patience` seconds."""
        for loop in self._joining:  # work in the other databases does not go on meanwhile
            loop.stopping.set()
        at_work = self.each()
        _side_by_side(stop, at_work)
        until = time.monotonic() + patience
        for loop in self._joining:
            loop.stop(max(0.0, until - time.monotonic()))
        _side_by_side(stop, [one for one in self.each() if one not in at_work])


def _side_by_side(stop: Callable[[T], None], at_work: Sequence[T]) -> None:
    if len(at_work) == 1:
        stop(at_work[0])
    elif at_work:
        with ThreadPoolExecutor(len(at_work), "sqla_jobs-stop") as threads:
            for done in [threads.submit(copy_context().run, stop, one) for one in at_work]:
                done.result()
