"""The claimer of jobs behind limits. Its own thread fills slots that are free or soon will be."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Sequence

from sqla_jobs.database.subscribers import LIMITS
from sqla_jobs.queries import Claimed
from sqla_jobs.queries.limited import Gates
from sqla_jobs.rules.outcomes import Outcome
from sqla_jobs.runtime.retrying import RetryLoop
from sqla_jobs.worker.backfill import Backfill
from sqla_jobs.worker.claiming import Claiming
from sqla_jobs.worker.freed_places import FreedPlaces
from sqla_jobs.worker.group_walk import GroupWalk

_UNSURE = 0.05
"""Seconds between looks while the last heartbeat is too old for claims."""
_POLLS = 3.9
"""The number of polls after which to look even without a message."""


class LimitedClaimer:
    """Claims jobs behind limits. It keeps looking as long as it claims anything.

    A queue rests once a complete round through its groups has claimed nothing, if the round began after the last news.
    News, such as a new job, an ended attempt or a changed limit, wakes every queue. When a rate allows one more start,
    this wakes only the queue that waits for it. When a slot becomes free in a queue that is not resting, the queue's
    round continues. Polls make up for lost messages.

    The claimer does nothing while neither code nor an operator limits anything.
    """

    def __init__(self, claiming: Claiming, backfill: Backfill, tasks: Sequence[str]) -> None:
        shared = claiming.shared
        self._settings = shared.settings
        self._attempts = shared.attempts
        self._engine = shared.claims
        self._liveness = claiming.liveness
        self._finisher = claiming.finisher
        self._lookout = claiming.lookout
        self._backfill = backfill
        self._freed = FreedPlaces(claiming)
        self._walks = [GroupWalk(claiming, backfill, tuple(tasks), backlog) for backlog in claiming.backlogs]
        self._news = object()
        """An object that is replaced whenever there is news.

        A round that begins and ends with the same object has missed no news.
        """
        self._poll_at = 0.0
        self._look_at = math.inf
        """When to look next if nothing wakes the loop before, by `time.monotonic()`.

        It is set once, while the queues go to rest. If the time passes right afterwards, it still leads to a look.
        """
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._looking = threading.Lock()
        self._retry = RetryLoop("claiming behind limits", self._stopping)
        self._thread = threading.Thread(target=self._loop, name="sqla_jobs-limited", daemon=True)

    def start(self) -> None:
        self._wake.set()
        self._thread.start()

    def stop(self) -> None:
        """Stop claiming. Wait up to 5 s for a claim in progress: its jobs must be given back too."""
        self._stopping.set()
        self._wake.set()
        if self._looking.acquire(timeout=5.0):
            self._looking.release()

    @property
    def trouble(self) -> str | None:
        """The error that prevents claims; `None` if the last try succeeded."""
        return self._retry.trouble

    def heard(self) -> None:
        """Record news: jobs that could not start before may start now."""
        self._news = object()
        if self._is_of_use:
            self._wake.set()

    def told_alone(self, queue: str) -> None:
        """Record that no other worker is told of the next message about `queue`; "" means any queue."""
        for walk in self._walks:
            if queue in ("", walk.backlog.name):
                walk.is_first_fill = True

    def slot_freed(self) -> None:
        """Wake the claim loop: a slot has become free in a queue that is not resting."""
        self._wake.set()

    def is_meant(self, what: str) -> bool:
        """Return whether a message may concern limited jobs.

        Jobs that only operators limit are announced like unlimited jobs.
        """
        may_be_limited = self._backfill.by_operators or self._backfill.is_behind(self._news)
        return not what or what.endswith(LIMITS) or may_be_limited

    def poll(self) -> None:
        """Every four polls, look at some groups to make up for lost messages. Also look once the first limit is set."""
        now = time.monotonic()
        if now >= self._poll_at:
            self._poll_at = now + _POLLS * self._settings.poll
            for walk in self._walks:
                walk.poll()
            self._wake.set()
        elif self._backfill.is_behind(self._news):
            self._wake.set()

    def ended(self, jobs: Sequence[Claimed]) -> None:
        """Free the places that ended jobs held behind limits and in limited queues."""
        queues, added = self._backfill.queues, self._backfill.added_to_tasks
        is_news = False
        for job in jobs:
            if job.gates or job.queue in queues or job.task in added:
                gates = job.gates or tuple(added.get(job.task, ()))  # an operator may have added gates during the run
                is_news |= self._freed.add(gates, job.queue if job.queue in queues else "")
        if is_news:
            self.heard()

    def limits(self, job: Claimed) -> bool:
        """Return whether the job counts against a limit, as far as this worker knows. Any thread may call this."""
        return bool(job.gates or job.queue in self._backfill.queues or job.task in self._backfill.added_to_tasks)

    def claim_some(self) -> bool:
        """Claim in the calling thread.

        Return False if nothing was claimed, the worker holds no jobs, and all queues are resting.
        """
        if not self._is_of_use:
            return False
        self._news = object()
        self._backfill.look(self._engine.begin, self._news)
        return self._look() or len(self._attempts) > 0 or not self.rests

    @property
    def rests(self) -> bool:
        """True if all queues are resting, so that only news can make a job start."""
        return not self._is_of_use or all(walk.rests(self._news) for walk in self._walks)

    def leave(self) -> None:
        """Notify other workers of the places that have become free since this worker stopped claiming."""
        self._freed.take()
        self._freed.notify()

    @property
    def _is_of_use(self) -> bool:
        return self._backfill.is_limited or self._lookout.has_limits

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(min(max(0.0, self._wakes_at() - time.monotonic()), threading.TIMEOUT_MAX))
            self._wake.clear()
            if self._is_of_use:
                self._retry.run(self._look)

    def _wakes_at(self) -> float:
        """Return when the loop wakes by itself."""
        return min(self._look_at, self._freed.notify_at) if self._is_of_use else math.inf

    def _look(self) -> bool:
        """Claim for the queues in turn, until each is resting or has no room. Return whether anything was claimed."""
        any_claimed = False
        with self._looking:
            try:
                while rooms := self._rooms():
                    hints = self._freed.take()
                    claimed = [self._claim(walk, room, hints) for walk, room in rooms]
                    any_claimed = any_claimed or any(claimed)
                self._freed.notify_if_due()
            except Exception:
                for walk in self._walks:
                    walk.forget()
                raise
        return any_claimed

    def _rooms(self) -> list[tuple[GroupWalk, int]]:
        """Return the queues from which to claim now, each with the number of jobs. Set the time of the next look."""
        if self._stopping.is_set():
            return []
        if not self._liveness.is_sure:
            self._look_at = time.monotonic() + _UNSURE
            return []
        if self._backfill.look_if_due(self._engine.begin, self._news):
            self._news = object()  # jobs that had no gates before may start now
        rooms = [(walk, room) for walk in self._walks if (room := walk.room(self._news))]
        self._look_at = min(self._backfill.due_at(self._news), *(walk.look_at for walk in self._walks))
        return rooms

    def _claim(self, walk: GroupWalk, room: int, hints: Counter[Gates]) -> bool:
        asked_at = time.monotonic()
        with self._attempts.claiming_limited:
            with self._attempts.expecting_unknown():
                jobs = walk.claim(room, hints, self._news)
                missing = self._backfill.missing(self._engine.begin, jobs)
            fresh = self._attempts.add(jobs, asked_at=asked_at)
        self._freed.refilled(jobs, walk.free)
        begins = {attempt.job.run_id for attempt in fresh if self._may_begin(attempt.job)} - missing
        for attempt in fresh:
            if attempt.job.run_id not in begins:
                self._finisher.put(attempt.ended(Outcome.released()))
        walk.backlog.fill_first([attempt for attempt in fresh if attempt.job.run_id in begins])
        if walk.is_first_fill and len(jobs) == room:
            walk.is_first_fill = False
            self._lookout.found_more(walk.backlog.name + LIMITS)
        return bool(jobs)

    def _may_begin(self, job: Claimed) -> bool:
        """Return whether the lease of a claimed job is certainly still valid.

        If this process was suspended in the meantime, other processes may consider it dead.
        """
        return self._liveness.is_sure and job.process_id == self._liveness.process_id
