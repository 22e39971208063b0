"""The resolver, which queues blocked jobs once the jobs that they were enqueued after have ended."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from sqla_jobs.queries import MANY, Queries, RunEnd
from sqla_jobs.queries.resolve import MOST, Settled
from sqla_jobs.runtime.loop import Loop

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_SOON, _SELDOM = 1.0, 60.0
"""The least and the most seconds between two looks at all blocked jobs without a message, however long a poll takes."""
_LOCKED_AGAIN = 0.05
"""Seconds after which locked rows are tried again."""
_REST = 20
"""The pause after a look at all blocked jobs, in multiples of the look's duration.

The shorter of the last two durations counts: one of the looks may have had to wait for a connection or for the
processor.
"""


@dataclass(frozen=True)
class _Look:
    """What a look at all blocked jobs has found, and when to look again, by `time.monotonic()`."""

    news: object
    """The news that the look has seen."""
    found_any: bool = True
    """False if no job was blocked."""
    took: float = 0.0
    """The look's duration in seconds."""
    pause: float = _SOON
    """Seconds until the next look without news."""
    due_at: float = 0.0
    due_at_news: float = 0.0
    """When to look again if there has been news since."""


class JobResolver:
    """Resolves blocked jobs in its own thread, once the jobs that they wait for have ended in this worker.

    It also looks at all blocked jobs, after a message and from time to time: another process may have ended a job, and
    died before it resolved the jobs that waited. While no job is blocked, it does nothing.
    """

    def __init__(
        self, engine: sa.Engine, queries: Queries, *, patience: float, poll: float, claim: Callable[[str], object]
    ) -> None:
        """Prepare to resolve jobs. `claim` is called with each message about queued jobs."""
        self._engine = engine
        self._locking = engine.execution_options(isolation_level="READ COMMITTED")
        self._patience = patience
        self._queries = queries
        self._claim = claim
        self._ended: deque[int] = deque()
        """The ended jobs whose blocked jobs are to be resolved."""
        self._news: object = object()
        """An object that each message about blocked jobs replaces."""
        self._last = _Look(None)
        self._longest_pause = min(max(_SOON, poll), _SELDOM)
        self._has_queued = False
        """True if a job was queued since the last call to `resolve_all`."""
        self._working = threading.Lock()
        self._loop = Loop("resolving blocked jobs", self.step, name="sqla_jobs-resolver", server=engine, finishes=True)

    def start(self) -> None:
        """Start, and look once, since jobs may be blocked already."""
        self._loop.start()

    def stop(self, timeout: float) -> None:
        """Spend at most `timeout` seconds handling the jobs that have ended so far. Then stop."""
        self._loop.stop(timeout)

    def told(self) -> None:
        """Look at all blocked jobs soon: there may be new ones, or some that can be queued."""
        self._news = object()
        self._loop.tell()

    @property
    def _is_wanted(self) -> bool:
        """True unless the last look found no blocked job, and there has been no news since it began."""
        last = self._last  # read once, and before the news: another thread may replace both
        return last.found_any or last.news is not self._news

    def told_of_changes(self) -> None:
        """Look at all blocked jobs soon if there are any: somebody has cancelled, deleted or changed jobs."""
        if self._is_wanted:
            self.told()

    def expect(self) -> None:
        """Resolve blocked jobs from now on."""
        if not self._is_wanted:
            self.told()

    def ended(self, ends: Iterable[RunEnd]) -> None:
        """Soon resolve the blocked jobs that wait for the jobs of these runs."""
        if self._is_wanted:
            self._ended.extend(end.lease.job_id for end in ends)
            self._loop.tell()

    def resolve_all(self) -> bool:
        """Look at all blocked jobs now, in this thread.

        Return whether any job has been queued since the last call. Jobs that are locked are tried a second time, and
        then are left to whoever holds them.
        """
        with self._working:
            self._look()
            if self._ended:
                self._loop.stopping.wait(_LOCKED_AGAIN)
                self._resolve(self._take())
            has_queued, self._has_queued = self._has_queued, False
        return has_queued

    def step(self) -> float:
        """Resolve the jobs that wait for ended ones, and look at all blocked jobs if that is due."""
        with self._working:
            if ended := self._take():
                self._resolve(ended)
            if time.monotonic() >= self._look_due_at:
                self._look()
            return min(self._look_due_at, time.monotonic() + _LOCKED_AGAIN) if self._ended else self._look_due_at

    @property
    def _is_behind(self) -> bool:
        """True if there has been news since the last look at all blocked jobs began."""
        return self._last.news is not self._news

    @property
    def _look_due_at(self) -> float:
        if not self._is_wanted:
            return math.inf
        return self._last.due_at_news if self._is_behind else self._last.due_at

    def _take(self) -> set[int]:
        taken = set[int]()
        while self._ended:
            taken.add(self._ended.popleft())
        return taken

    def _look(self) -> None:
        """Resolve all blocked jobs that wait for a job that has already ended."""
        began, news = time.monotonic(), self._news
        with self._engine.begin() as connection:
            blocked = self._queries.look_for_blocked(connection)
        now, last = time.monotonic(), self._last
        took, pause = now - began, min(2 * last.pause, self._longest_pause)
        pause = _SOON if blocked.ended or blocked.is_old else pause
        rest = _REST * min(last.took, took)
        self._last = _Look(news, blocked.are_there, took, pause, due_at=now + max(pause, rest), due_at_news=now + rest)
        while ended := blocked.ended:
            self._resolve(ended)
            if len(ended) < MANY:
                break
            with self._engine.begin() as connection:
                blocked = self._queries.look_for_blocked(connection, beyond=ended[-1])

    def _resolve(self, ended: Collection[int]) -> None:
        """Resolve the jobs that wait for the ended jobs. Jobs that this cancels count as ended, too.

        If one of them is locked, or waits for a batch that is being filled, or somebody may be retrying the job before
        it, that job stays in `_ended`, for another step soon. After an error, look at all blocked jobs and at all
        queues: part of the work may be committed.
        """
        try:
            while ended:
                settled = [*self._settled(ended)]
                ended = {one.watches for one in settled if one.state == "blocked"}
                ended |= {one.job_id for one in settled if one.state == "cancelled"}
        except Exception:
            self.told()
            self._claim("")
            raise

    def _settled(self, ended: Collection[int]) -> Iterator[Settled]:
        """Settle the jobs that wait for those of the jobs that have ended, in one transaction after another."""
        last, is_full = 0, True
        while is_full:
            with self._locking.begin() as connection:
                watchers = self._queries.lock_watchers(connection, ended, beyond=last, idle=self._patience)
                settled = self._queries.settle(connection, watchers.ids, watchers.batches) if watchers.ids else []
            self._tell(settled)
            self._ended.extend(watchers.left)
            self._ended.extend(one.watches for one in settled if one.state == "later")
            yield from settled
            is_full, last = len(watchers.ids) == MOST, max(watchers.ids, default=0)

    def _tell(self, settled: Collection[Settled]) -> None:
        """Claim the jobs that have been queued."""
        queued = {one.message for one in settled if one.state in ("queued", "scheduled")}
        self._has_queued |= bool(queued)
        for message in queued:
            self._claim(message)
