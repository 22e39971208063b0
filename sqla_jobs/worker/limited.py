"""Claims jobs from behind gates, for slots that are free or soon will be, in a thread of its own."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqla_jobs.database.subscribers import LIMITS
from sqla_jobs.queries import Claimed
from sqla_jobs.queries.limited import Gates
from sqla_jobs.rules.outcomes import Outcome
from sqla_jobs.runtime.retrying import RetryLoop
from sqla_jobs.worker.backlog import Backlog
from sqla_jobs.worker.claiming import Claiming
from sqla_jobs.worker.gating import Gating
from sqla_jobs.worker.group_walk import GroupWalk

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_ROUND = 0.05
"""Seconds after which a look at the groups of a queue stops. The next one goes on from there."""
_POLLS = 3.9
"""Polls between two looks without a reason."""
_SOON, _SELDOM = 1.0, 5.0
"""Seconds between two looks for jobs that lack gates: after news, and without news."""
_TELL = 0.1
"""Seconds between two messages to other workers about free places, at least."""
_MOST = 100_000
"""Groups that are known to be never full, at most."""
_REST = 4
"""The pause after an unfinished round, in multiples of its length."""


@dataclass
class _Lane:
    backlog: Backlog
    walk: GroupWalk
    seen: int = 0
    """The value of `_heard` when the last complete round through its groups began."""
    round: int = 0
    """The value of `_heard` when the present round began."""


class LimitedClaimer:
    """Claims behind gates: after an enqueue, after an end here, when a rate lets one more start, and every few polls.

    It does nothing while neither code nor an operator limits anything.
    """

    def __init__(self, claiming: Claiming, gating: Gating, tasks: Sequence[str]) -> None:
        shared = claiming.shared
        self._queries = shared.queries
        self._settings = shared.settings
        self._attempts = shared.attempts
        self._channel = shared.models.channel
        self._engine = claiming.engine
        self._liveness = claiming.liveness
        self._finisher = claiming.finisher
        self._lookout = claiming.lookout
        self._gating = gating
        self._lanes = [_Lane(lane, GroupWalk(claiming, gating, tuple(tasks), lane.name)) for lane in claiming.lanes]
        self._tell_at = self._help_at = 0.0
        self._freed = deque[Gates]()
        """The groups of jobs that ended here, the oldest first. They are looked at before all others."""
        self._never_full = set[Gates]()
        """Groups whose gates admit more jobs than all workers have slots: nothing waits for the end of one."""
        self._poll_at = 0.0
        self._gated = -1
        """The value of `_heard` at the last look for jobs that lack gates."""
        self._heard = 0
        """How many times there was news: a reason to look through all groups."""
        self._refilled = set[Gates]()
        """Groups of which a job was claimed in this look."""
        self._next_at = math.inf
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._looking = threading.Lock()
        self._patience = RetryLoop("claiming behind limits", self._stopping)
        self._thread = threading.Thread(target=self._loop, name="sqla_jobs-limited", daemon=True)

    def start(self) -> None:
        self._wake.set()
        self._thread.start()

    def stop(self) -> None:
        """Claim no more. Waits up to 5 s for a claim under way: its jobs have to be given back too."""
        self._stopping.set()
        self._wake.set()
        if self._looking.acquire(timeout=5.0):
            self._looking.release()

    @property
    def trouble(self) -> str | None:
        """Why it cannot claim now; `None` where the last try went well."""
        return self._patience.trouble

    def wake(self) -> None:
        """Look through all groups: there may be jobs that can start, or a slot is free."""
        if self._is_of_use:
            self._heard += 1
            self._wake.set()

    def is_meant(self, what: str) -> bool:
        """Whether a message may be of limited jobs: those that only an operator limits are told of as plain ones."""
        return not what or what.endswith(LIMITS) or self._gating.by_operators

    def poll(self) -> None:
        """Look at some groups every four polls, to find what no message told of."""
        now = time.monotonic()
        if self._is_of_use and now >= self._poll_at:
            self._poll_at = now + _POLLS * self._settings.poll
            self._wake.set()

    def ended(self, job: Claimed) -> None:
        """The end of the job is stored: its places behind its gates and in its queue are free."""
        may_be_awaited = bool(job.gates) and job.gates not in self._never_full
        if may_be_awaited:
            self._freed.append(job.gates)
        if may_be_awaited or job.queue in self._gating.queues:
            self.wake()

    def claim_some(self) -> bool:
        """Claim in the calling thread. Returns False if no thread has claimed anything and all news was seen."""
        if not self._is_of_use:
            return False
        self._heard += 1
        self._gating.look(self._engine.begin, time.monotonic())
        return self._look() or len(self._attempts) > 0 or any(lane.seen != self._heard for lane in self._lanes)

    @property
    def _is_of_use(self) -> bool:
        return self._gating.is_limited or self._lookout.has_limits

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(min(max(0.0, self._next_at - time.monotonic()), threading.TIMEOUT_MAX))
            self._wake.clear()
            if self._is_of_use:
                self._patience.run(self._look)

    def _look(self) -> bool:
        with self._looking:
            if self._stopping.is_set() or not self._liveness.is_sure:
                self._next_at = time.monotonic() + _ROUND
                return False
            self._next_at = math.inf
            is_news, self._gated = self._heard != self._gated, self._heard
            hints = self._take_freed()
            try:
                self._gating.look(self._engine.begin, time.monotonic(), after=_SOON if is_news else _SELDOM)
                self._refilled.clear()
                found = [self._look_through(lane, hints) for lane in self._lanes]
                left = Counter({hint: ended for hint, ended in hints.items() if hint not in self._refilled})
                if left:
                    self._leave_to_others(left, time.monotonic())
            except Exception:
                self._freed.extend(hints.elements())
                for lane in self._lanes:
                    lane.walk.forget()
                raise
            return any(found)

    def leave(self) -> None:
        """Tell other workers of the places that became free since this one stopped claiming."""
        if left := self._take_freed():
            self._tell_at = 0.0
            self._leave_to_others(left, time.monotonic())

    def _leave_to_others(self, hints: Counter[Gates], now: float) -> None:
        """Tell other workers of free places that this one could not fill: they may serve another queue or task."""
        if now < self._tell_at:
            self._freed.extend(hints.elements())
            self._next_at = min(self._next_at, self._tell_at)
            return
        ended = Counter[str]()
        for gates, jobs in hints.items():
            ended.update(dict.fromkeys(gates, jobs + self._lookout.workers))  # others have ended some meanwhile
        with self._engine.connect() as connection:
            self._queries.tell_others(connection, self._channel, ended)
        self._tell_at = time.monotonic() + max(_TELL, 20 * (time.monotonic() - now))

    def _take_freed(self) -> Counter[Gates]:
        """The groups, each with the number of its jobs that ended."""
        return Counter(self._freed.popleft() for _ in range(len(self._freed)))

    def _look_through(self, lane: _Lane, hints: Counter[Gates]) -> bool:
        """Claim from the groups of a queue while there is room and time. Returns whether anything was claimed."""
        began = time.monotonic()
        lane.backlog.measure(began)
        if began >= lane.walk.sweep_at:
            lane.seen = lane.round = -1  # a sweep goes once around all groups
        any_claimed, took = False, 0.0
        while (room := lane.backlog.room_behind_gates()) and took < _ROUND:
            if lane.walk.is_at_start:
                lane.round = self._heard  # what is heard of from here on is seen in the next round
            claimed = self._claim(lane, room, hints)
            any_claimed, hints = any_claimed or claimed > 0, Counter()
            took = time.monotonic() - began
            if claimed == room:
                self._find_helpers(lane)
            if lane.walk.is_at_start and claimed < room:
                lane.seen = lane.round
            if lane.seen == self._heard:
                break
        if room:
            is_complete = lane.seen == self._heard
            self._next_at = min(self._next_at, lane.walk.sweep_at if is_complete else time.monotonic() + _REST * took)
        return any_claimed

    def _find_helpers(self, lane: _Lane) -> None:
        """There may be more than this worker has slots for."""
        if (now := time.monotonic()) >= self._help_at:
            self._help_at = now + _TELL
            self._lookout.found_more(lane.backlog.name + LIMITS)

    def _claim(self, lane: _Lane, room: int, hints: Counter[Gates]) -> int:
        asked_at = time.monotonic()
        with self._attempts.claiming_limited:
            with self._attempts.expecting_unknown():
                jobs = lane.walk.claim(room, hints)
                missing = self._gating.missing(self._engine.begin, jobs)
            fresh = self._attempts.add(jobs, asked_at=asked_at)
        self._next_at = min(self._next_at, lane.walk.next_at)
        self._note_free(lane.walk.free)
        begins = {held.job.run_id for held in fresh if self._may_begin(held.job)} - missing
        for held in fresh:
            if held.job.run_id not in begins:
                self._finisher.put(held.ended(Outcome.released()))
        self._refilled.update(job.gates for job in jobs)
        lane.backlog.fill_first([held for held in fresh if held.job.run_id in begins])
        return len(jobs)

    def _note_free(self, free: Mapping[Gates, int | None]) -> None:
        threads = 2 * self._lookout.workers * self._settings.jobs_at_once  # others may have some more
        self._never_full -= free.keys()
        self._never_full |= {gates for gates, number in free.items() if number is None or number > threads}
        if len(self._never_full) > _MOST:
            self._never_full.clear()

    def _may_begin(self, job: Claimed) -> bool:
        """Whether its lease surely stands. If this process was stopped meanwhile, others may take it for dead."""
        return self._liveness.is_sure and job.process_id == self._liveness.process_id
