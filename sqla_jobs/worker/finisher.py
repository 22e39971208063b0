"""The finisher, which stores the ends of attempts in batches. Its connections are separate from those for claims."""

from __future__ import annotations

import heapq
import logging
import math
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue

import sqlalchemy as sa

from sqla_jobs.database.refusals import reason
from sqla_jobs.database.shard_name import of_shard
from sqla_jobs.execution.run_lines import run_fields
from sqla_jobs.queries import Queries, RunEnd
from sqla_jobs.rules.outcomes import SUCCEEDED, RunOutcome
from sqla_jobs.runtime.retrying import RetryLoop
from sqla_jobs.runtime.set_aside import SetAside
from sqla_jobs.runtime.storing import as_stored, store

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_BATCH = 1000
_BATCH_SIZE = 8_000_000
"""A batch is full once its results and tracebacks contain this many characters."""
_LOCKED_AGAIN = 0.05
"""Seconds after which a locked row is tried again."""
_GIVE_UP = 1.0
"""Seconds allowed for the thread to end once it has given up."""
_REFUSED_AGAIN = 60.0
"""If the server refuses an end, and also a failure in its place, the end is tried again after this many seconds."""


class Finisher:
    """Stores the ends of attempts, which any thread may pass to it.

    While one batch is being written, the next one fills up. So batches grow with the load, and a single end is written
    immediately.
    """

    def __init__(
        self,
        engine: sa.Engine,
        queries: Queries,
        set_aside: SetAside,
        *,
        settled: Callable[[list[RunEnd], list[RunEnd]], None],
    ) -> None:
        """Prepare to store ends. `settled(ends, stored)` is called after each batch.

        `ends` contains the ends that were stored and those that had lost their leases, with the outcomes in the
        database. `stored` contains the ends that were stored with their own outcome, or with `cancelled` instead.
        """
        self._engine = engine
        self._queries = queries
        self._set_aside = set_aside
        self._queue: SimpleQueue[RunEnd | None] = SimpleQueue()
        self._settled = settled
        self._aside: list[tuple[float, int, RunEnd]] = []
        """A heap of the ends that could not be stored: when to try each again, its run id, and the end."""
        self._is_closing = False
        self._give_up = threading.Event()
        self._retry = RetryLoop("storing outcomes", self._give_up)
        self._thread = threading.Thread(target=of_shard(self._loop), name="sqla_jobs-finisher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, end: RunEnd) -> None:
        """Queue an end, which is then stored soon."""
        self._queue.put(end)

    @property
    def waiting(self) -> int:
        """The number of ends that are not in a batch yet."""
        return self._queue.qsize()

    def close(self, timeout: float) -> bool:
        """Spend at most `timeout` seconds storing the remaining ends. Return whether all ends were stored."""
        deadline = time.monotonic() + timeout
        self._is_closing = True
        self._queue.put(None)  # wakes the thread, which ends once all ends are stored
        if self._thread.ident is not None:
            self._thread.join(max(0.0, timeout - _GIVE_UP))
            self._give_up.set()
            self._thread.join(max(0.0, deadline - time.monotonic()))
        return not (self._thread.is_alive() or self._aside or self._take([]))

    def _loop(self) -> None:
        while not self._give_up.is_set():
            self._store(self._gather())
            if self._is_closing and self._again_in > _LOCKED_AGAIN and self._queue.empty():
                return

    def _store(self, batch: list[RunEnd]) -> None:
        """Write a batch, and wait as long as the server is unavailable. Keep the batch if the worker gives up."""
        try:
            self._retry.call(partial(self._write_all, batch))
        except Exception as error:  # noqa: BLE001 - logged, and kept for `close` to see
            log.error("%d outcomes could not be stored before the worker ended: %s", len(batch), reason(error))  # noqa: TRY400
            for end in batch:
                self._try_again(end, 0.0)

    def _try_again(self, end: RunEnd, seconds: float) -> None:
        """Keep an end, and try it again after some seconds."""
        heapq.heappush(self._aside, (time.monotonic() + seconds, end.lease.run_id, end))

    @property
    def _again_in(self) -> float:
        """Seconds until an end is to be tried again. Infinite if there is none."""
        return self._aside[0][0] - time.monotonic() if self._aside else math.inf

    def _gather(self) -> list[RunEnd]:
        """Wait for ends, and return a batch of them."""
        batch: list[RunEnd] = []
        try:
            first = self._queue.get(timeout=max(0.0, min(self._again_in, _REFUSED_AGAIN)))
        except Empty:
            first = None
        if first is not None:
            batch.append(first)
        while self._aside and self._aside[0][0] <= time.monotonic() and len(batch) < _BATCH // 2:
            batch.append(heapq.heappop(self._aside)[2])  # the rest of the batch is for new ends
        return self._take(batch)

    def _take(self, batch: list[RunEnd]) -> list[RunEnd]:
        """Add waiting ends to the batch until it is full. Return the batch."""
        size = sum(map(_size, batch))
        while len(batch) < _BATCH and size < _BATCH_SIZE:
            try:
                end = self._queue.get_nowait()
            except Empty:
                break
            if end is not None:
                batch.append(end)
                size += 0 if end.outcome is SUCCEEDED else _size(end)
        return batch

    def _write_all(self, batch: list[RunEnd]) -> None:
        fates = store(self._engine, self._queries, batch, self._set_aside)
        stored = batch
        if fates:
            of_each = [(end, fates.get(end.lease.run_id)) for end in batch]
            left = [(as_stored(end, fate), fate) for end, fate in of_each if not self._put_aside(end, fate)]
            stored = [end for end, fate in left if _is_stored(end, fate)]
            batch = [end for end, _ in left]
        self._settled(batch, stored)

    def _put_aside(self, end: RunEnd, fate: str | None) -> bool:
        """Keep an end for another try if its fate is "locked" or "refused". Return whether the end is kept."""
        if fate in ("lost", "rescued") and end.outcome.kind not in ("released", "lost"):
            what = "job %s was given to another process before its end could be stored"
            log.warning(what, end.lease.job_id, extra=run_fields(end.lease, RunOutcome.lost))
        if fate not in ("locked", "refused"):
            return False
        self._try_again(end, _LOCKED_AGAIN if fate == "locked" else _REFUSED_AGAIN)
        return True


def _is_stored(end: RunEnd, fate: str | None) -> bool:
    """Return whether the stored run records this end.

    If the run already existed, a commit whose reply was lost may have stored it.
    """
    return fate in (None, "cancelled") or (fate == "known" and end.outcome.kind is RunOutcome.succeeded)


def _size(end: RunEnd) -> int:
    failure = end.outcome.failure
    return len(end.outcome.result or "") + len((failure and failure.traceback) or "")
