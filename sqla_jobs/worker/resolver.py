"""The resolver, which queues blocked jobs once the jobs that they were enqueued after have ended."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from itertools import islice

from sqlalchemy import Engine

from sqla_jobs.queries import Queries, RunEnd
from sqla_jobs.queries.resolve import MOST, Settled
from sqla_jobs.runtime.retrying import RetryLoop

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
_WAITS_LONGEST = 3600.0


class JobResolver:
    """Resolves blocked jobs in its own thread, once the jobs that they wait for have ended in this worker.

    It also looks at all blocked jobs, after a message and from time to time: another process may have ended a job, and
    died before it resolved the jobs that waited. While no job is blocked, it does nothing.
    """

    def __init__(self, engine: Engine, queries: Queries, *, patience: float, poll: float) -> None:
        self._engine = engine
        self._locking = engine.execution_options(isolation_level="READ COMMITTED")
        self._patience = patience
        self._queries = queries
        self._ended: deque[int] = deque()
        self._held: set[int] = set()
        """Ended jobs to handle again.

        A job that waits for them is locked, or waits for a batch that is being filled, or somebody may be retrying
        them.
        """
        self._is_wanted = False
        """True while jobs may be blocked."""
        self._is_told = False
        """True if a message has arrived since the last look at all blocked jobs."""
        self._look_at = 0.0
        self._rests_until = 0.0
        self._took = 0.0
        """The seconds that the last look took."""
        self._pause = _SOON
        self._longest_pause = min(max(_SOON, poll), _SELDOM)
        self._has_queued = False
        """True if a job was queued since the last call to `resolve_all`."""
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._working = threading.Lock()
        self._retry = RetryLoop("resolving blocked jobs", self._stop)
        self._thread: threading.Thread | None = None

    def start(self, claim: Callable[[str], None]) -> None:
        """Start, and look once, since jobs may be blocked already.

        `claim` is called with each message about queued jobs.
        """
        self._claim = claim
        self._thread = threading.Thread(target=self._loop, name="sqla_jobs-resolver", daemon=True)
        self._is_told = self._is_wanted = True
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Spend at most `timeout` seconds handling the jobs that have ended so far. Then stop."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def told(self) -> None:
        """Look at all blocked jobs soon: there may be new ones, or some that can be queued."""
        self._is_told = self._is_wanted = True  # in this order: `_look` checks `_is_told` last
        self._wake.set()

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
            self._wake.set()

    def resolve_all(self) -> bool:
        """Look at all blocked jobs now, in this thread.

        Return whether any job has been queued since the last call, or may be queued once its lock is released.
        """
        with self._working:
            self._resolve(self._take())
            self._look()
            while self._is_told and not self._held and not self._stop.is_set():  # one look finds only some of the jobs
                self._look()
            has_queued, self._has_queued = self._has_queued, False
        if self._held:
            self._stop.wait(_LOCKED_AGAIN)
        return has_queued or bool(self._held)

    def _loop(self) -> None:
        while True:
            self._wake.wait(self._next_step_in())
            self._wake.clear()
            is_last = self._stop.is_set()
            with self._working:
                self._retry.run(self._step)
            if is_last:
                return

    def _next_step_in(self) -> float:
        if self._held:
            return _LOCKED_AGAIN
        if not self._is_wanted:
            return _WAITS_LONGEST
        return max(0.0, self._look_due_at - time.monotonic())

    @property
    def _look_due_at(self) -> float:
        return max(self._rests_until, 0.0 if self._is_told else self._look_at)

    def _step(self) -> None:
        if ended := self._take():
            self._resolve(ended)
        if self._is_wanted and time.monotonic() >= self._look_due_at:
            self._look()

    def _take(self) -> set[int]:
        taken, self._held = self._held, set()
        while self._ended:
            taken.add(self._ended.popleft())
        return taken

    def _look(self) -> None:
        """Resolve all blocked jobs that wait for a job that has already ended, unless that is to be handled again."""
        began, self._is_told = time.monotonic(), False
        try:
            with self._engine.begin() as connection:
                are_blocked, is_old = self._queries.look_for_blocked(connection)
                ended = self._queries.find_ended(connection, but=self._held) if are_blocked else []
        except Exception:
            self._is_told = True
            raise
        now = time.monotonic()
        took, self._took = self._took, now - began
        self._rests_until = now + _REST * min(took, self._took)
        self._pause = _SOON if ended or is_old else min(2 * self._pause, self._longest_pause)
        if len(ended) >= MOST:
            self._is_told = True
        self._look_at = now + self._pause
        if not are_blocked and not self._is_told:
            self._is_wanted = False
            if self._is_told:  # a message has arrived in between
                self._is_wanted = True
        self._resolve(ended)

    def _resolve(self, ended: Collection[int]) -> None:
        """Resolve the jobs that wait for the ended jobs. Jobs that this cancels count as ended, too.

        After an error, look at all blocked jobs and at all queues: part of the work may be committed.
        """
        left = set(ended)
        try:
            while some := set(islice(left, MOST)):  # of more than that, `find_ended` might return only locked ones
                left = left - some | self._resolve_some(some)
        except Exception:
            self.told()
            self._claim("")
            raise

    def _resolve_some(self, candidates: Collection[int]) -> set[int]:
        """Resolve the jobs that wait for those candidates that have ended. Return the next candidates."""
        with self._engine.begin() as connection:
            ended = self._queries.find_ended(connection, candidates)
        if not ended:
            return set()
        with self._locking.begin() as connection:
            watchers = self._queries.lock_watchers(connection, ended, idle=self._patience)
            settled = self._queries.settle(connection, watchers.ids, watchers.batches) if watchers.ids else []
        self._tell(settled)
        left = set(candidates) if len(ended) >= MOST or not watchers.is_all else set[int]()
        watched = {one.watches for one in settled if one.state in ("blocked", "later")}
        if all(one.state == "later" for one in settled):
            self._held |= left | watched
            return left - watched if watched & left else set()  # those of the others may have found no room
        return left | watched | {one.job_id for one in settled if one.state == "cancelled"}

    def _tell(self, settled: Collection[Settled]) -> None:
        """Claim the jobs that have been queued."""
        queued = {one.message for one in settled if one.state in ("queued", "scheduled")}
        self._has_queued |= bool(queued)
        for message in queued:
            self._claim(message)
