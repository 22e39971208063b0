"""Stores the ends of attempts in batches, on a connection of its own, beside the claims."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, OperationalError

from sqla_jobs.outcomes import MAX_MESSAGE, Failed, Failure, storable
from sqla_jobs.queries import Finish, Queries
from sqla_jobs.worker.patience import Patience

log = logging.getLogger("sqla_jobs.worker")

_BATCH = 1000
_LOCKED_AGAIN = 0.05
"""Seconds after which a row that somebody held locked is tried again."""


class Finisher:
    """Takes the ends of attempts from any thread, and calls `stored(end, fate)` for each once it is known.

    While one batch is written the next one gathers, so that batches are as large as the load makes them
    and a single end is written at once.
    """

    def __init__(self, engine: Engine, queries: Queries, stored: Callable[[Finish, str], None]) -> None:
        self._engine = engine
        self._queries = queries
        self._stored = stored
        self._queue: SimpleQueue[Finish | None] = SimpleQueue()
        self._locked: list[Finish] = []
        self._closing = False
        self._give_up = threading.Event()
        self._patience = Patience("storing outcomes", self._give_up)
        self._thread = threading.Thread(target=self._loop, name="sqla_jobs-finisher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, end: Finish) -> None:
        """Store this soon."""
        self._queue.put(end)

    @property
    def waiting(self) -> int:
        """Ends not yet taken up for writing."""
        return self._queue.qsize()

    def close(self, timeout: float) -> bool:
        """Store what is left, for at most `timeout` seconds. Returns whether all of it was."""
        self._closing = True
        self._queue.put(None)
        self._thread.join(timeout)
        self._give_up.set()
        self._thread.join(1.0)
        return not self._thread.is_alive() and not self._locked and self._queue.empty()

    def _loop(self) -> None:
        while not self._give_up.is_set():
            batch = self._gather()
            if batch:
                try:
                    self._patience.call(partial(self._store, batch))
                except Exception:
                    log.exception("%d outcomes could not be stored before the worker ended", len(batch))
                    return
            if self._closing and not self._locked and self._queue.empty():
                return

    def _gather(self) -> list[Finish]:
        """What is there now; waits for something to be there."""
        batch, self._locked = self._locked, []
        try:
            first = self._queue.get(timeout=_LOCKED_AGAIN if batch else None)
            while True:
                if first is not None:
                    batch.append(first)
                if len(batch) >= _BATCH:
                    break
                first = self._queue.get_nowait()
        except Empty:
            pass
        return batch

    def _store(self, batch: list[Finish]) -> None:
        """Write a batch; what has been written of it leaves it, so that a repetition writes the rest."""
        while batch:
            self._write(batch, list(batch))

    def _write(self, batch: list[Finish], part: list[Finish]) -> None:
        try:
            with self._engine.begin() as connection:
                fates = self._queries.finish(connection, part)
        except DBAPIError as error:
            if isinstance(error, OperationalError) or error.connection_invalidated:
                raise
            if len(part) > 1:
                middle = len(part) // 2
                self._write(batch, part[:middle])
                self._write(batch, part[middle:])
                return
            fates = self._write_plainly(part[0], error)
        for end in part:
            batch.remove(end)
            fate = fates[end.lease.run_id]
            if fate == "locked":
                self._locked.append(end)
            else:
                self._stored(end, fate)

    def _write_plainly(self, end: Finish, error: DBAPIError) -> dict[int, str]:
        """The server refused this very outcome: store a failure that says so, in plain words."""
        reason = storable(str(error.orig).replace("\x00", ""), MAX_MESSAGE).encode("ascii", "replace").decode()
        failure = Failure("UnstorableOutcome", f"the outcome was refused by the server: {reason}")
        with self._engine.begin() as connection:
            return self._queries.finish(connection, [Finish(end.lease, Failed(failure), end.started, end.finished)])
