"""The claimer, which moves jobs from the database into the backlogs over its own connections."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Collection, Sequence

from sqla_jobs.database.subscribers import BLOCKED, LIMITS
from sqla_jobs.execution.attempt import Attempt
from sqla_jobs.queries import Among, Claimed
from sqla_jobs.rules.outcomes import Outcome
from sqla_jobs.runtime.retrying import RetryLoop
from sqla_jobs.worker.backlog import Backlog
from sqla_jobs.worker.claiming import Claiming
from sqla_jobs.worker.floors import ScanFloors
from sqla_jobs.worker.limited import LimitedClaimer

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_UNWRITTEN = 5000
"""Claiming pauses while at least this many ends wait to be stored."""
_HELD_UP = 0.01
"""Seconds between checks while claiming is paused."""


class Claimer:
    """Promotes due jobs, claims jobs for its backlogs and gives back stalled jobs, one of these at a time.

    It works in its own thread and in the listener's. It looks for work when its lookout or a backlog requires it, and
    immediately after `wake()`.
    """

    def __init__(
        self, claiming: Claiming, tasks: Sequence[str], *, all_tasks: Sequence[str], limited: LimitedClaimer
    ) -> None:
        shared = claiming.shared
        self._queries = shared.queries
        self._settings = shared.settings
        self._attempts = shared.attempts
        self._set_aside = shared.set_aside
        self._engine = shared.claims
        self._backlogs = claiming.backlogs
        self._liveness = claiming.liveness
        self._finisher = claiming.finisher
        self._lookout = claiming.lookout
        self._resolver = claiming.resolver
        self._tasks = tuple(tasks)
        self._all_tasks = tuple(all_tasks)
        self._limited = limited
        self._floors = ScanFloors(self._settings.queues)
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._looking = threading.RLock()
        self._retry = RetryLoop("claiming", self._stopping)
        self._again_at = math.inf
        """When to query the server again after an error: a step that sent no query would count as a success."""
        self._told_alone = {backlog.name for backlog in self._backlogs}
        """Queues of which other workers may not have been told since the last look that found no more jobs.

        If a claim from such a queue fills all its room, other workers may find more jobs.
        """
        self.thread: threading.Thread = threading.Thread(target=self._loop, name="sqla_jobs-claim", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """Stop claiming. Wait up to 5 s for a claim in progress: its jobs must be given back too."""
        self._stopping.set()
        self._wake.set()
        if self._attempts.claiming.acquire(timeout=5.0):
            self._attempts.claiming.release()

    def wake(self) -> None:
        """Wake the claim loop: a backlog has room for more jobs."""
        if not self._wake.is_set():
            self._wake.set()

    def look_again(self) -> bool:
        """Request a look for jobs in all queues, even below the floors. Return whether each queue has a free slot."""
        self._floors.sweep_soon()
        self._limited.poll()
        return self._is_heard("")

    def told_alone(self, queue: str) -> None:
        """Record that no other worker is told of the next message. Tell others if a claim then fills all its room."""
        name = queue.removesuffix(LIMITS)
        self._told_alone.update(backlog.name for backlog in self._backlogs_of(name))
        self._limited.told_alone(name)

    def heard(self, queue: str) -> bool:
        """Record that `queue` has new jobs; "" means any queue.

        This does not wait. Return whether slots are free for those jobs.
        """
        if queue == BLOCKED:
            self._resolver.told()
            return True
        if not queue:
            self._resolver.told_of_changes()
        if self._limited.is_meant(queue):
            self._limited.heard()
        if not queue.endswith(LIMITS):
            return self._is_heard(queue)
        if queue != LIMITS:  # one of the jobs may have a short delay
            self._lookout.expect_new(is_busy=False)
            self._wake.set()
        return self._are_free(queue.removesuffix(LIMITS))

    def _is_heard(self, queue: str) -> bool:
        if self._expect_in(queue):
            self._wake.set()
        return self._are_free(queue)

    def _are_free(self, queue: str) -> bool:
        backlogs = self._backlogs_of(queue)
        return bool(backlogs) and all(backlog.has_free_slot for backlog in backlogs)

    @property
    def has_free_slot(self) -> bool:
        """True if a slot of any queue is waiting for a job."""
        return any(backlog.has_free_slot for backlog in self._backlogs)

    def look_for(self, queue: str) -> None:
        """Claim new jobs from `queue` in the calling thread, which is faster than waking the claim loop."""
        if queue == BLOCKED or queue.endswith(LIMITS):
            self.heard(queue)
            return
        if not queue:
            self._resolver.told_of_changes()
        try:
            self._look_for_plain(queue)
        finally:
            if self._limited.is_meant(queue):  # only now: the limited claimer must not compete with the claim above
                self._limited.heard()

    def _look_for_plain(self, queue: str) -> None:
        if not self._expect_in(queue):
            return
        if self._looking.acquire(blocking=False):
            try:
                self._step()
            except Exception as error:  # noqa: BLE001 - the application's way of connecting may raise anything
                log.debug("left to the claiming thread, which logs errors: %s", error)
            finally:
                self._looking.release()
        self._wake.set()  # the claim loop must look again after an error, and otherwise compute its next wait

    def _expect_in(self, queue: str) -> bool:
        """Wake the backlogs of `queue`. Return whether any of these backlogs has a free slot."""
        backlogs = self._backlogs_of(queue)
        for backlog in backlogs:
            backlog.wake()
        is_free = any(backlog.has_free_slot for backlog in backlogs)
        self._lookout.expect_new(is_busy=not is_free)
        return is_free

    def _backlogs_of(self, queue: str) -> list[Backlog]:
        return [backlog for backlog in self._backlogs if queue in ("", backlog.name)]

    def expect(self, delay: float) -> None:
        """Expect a job to be due in `delay` seconds."""
        if self._lookout.expect(delay):
            self._wake.set()

    @property
    def trouble(self) -> str | None:
        """The error that prevents claims; `None` if the last try succeeded."""
        return self._retry.trouble

    def is_due(self) -> bool:
        """Return whether a job in these queues is due, or this worker holds a job that has not ended."""
        others = Among(set_aside=self._set_aside.reasons)
        with (
            self._attempts.claiming,
            self._attempts.claiming_limited,
            self._engine.begin() as connection,
        ):  # otherwise jobs locked by a claim in progress would be missed
            if self._attempts:  # checked first: the query finds a job that ends in between and is due again
                return True
            return self._queries.is_due(connection, list(self._settings.queues), self._all_tasks, others)

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self._retry.run(self._step)
            self._wake.wait(min(max(0.0, self._next_step_at() - time.monotonic()), threading.TIMEOUT_MAX))
            self._wake.clear()

    def _next_step_at(self) -> float:
        # a slot that becomes free during a rest does not wake the loop, one that becomes free afterwards does
        now = time.monotonic()
        waiting = [one.empty_until for one in self._backlogs if one.has_free_slot or one.empty_until > now]
        held_up = [backlog.stalls_at for backlog in self._backlogs]
        soonest = min([self._lookout.promote_at, self._again_at, *waiting, *held_up])
        return soonest if self._may_claim else max(soonest, time.monotonic() + _HELD_UP)

    @property
    def _may_claim(self) -> bool:
        """True if the last heartbeat is recent and only a few ends are waiting to be stored."""
        return self._liveness.is_sure and self._finisher.waiting < _UNWRITTEN

    def _step(self) -> None:
        with self._looking:
            try:
                self._look(time.monotonic())
            except Exception:
                self._again_at = 0.0
                raise

    def _look(self, now: float) -> None:
        for backlog in self._backlogs:
            backlog.measure(now)
            for attempt in backlog.stalled(now):
                self._finisher.put(attempt.ended(Outcome.released()))
        slots = {backlog.name: room for backlog in self._backlogs if (room := backlog.room(now))}
        if slots and self._may_claim:
            self._claim(slots, now)
        if now >= min(self._lookout.promote_at, self._again_at):
            self._promote(now)
            self._again_at = math.inf

    def _promote(self, now: float) -> None:
        with self._attempts.claiming:
            if is_news := self._lookout.promote(now):
                self._limited.heard()  # before `drain` can find that no job is due any more
        if self._lookout.has_blocked:
            self._resolver.expect()
        if is_news:
            for backlog in self._backlogs:
                backlog.wake()
        else:
            self._limited.poll()

    def _claim(self, slots: dict[str, int], now: float) -> None:
        self._floors.workers = self._lookout.workers
        floors = self._floors.of(slots, now)
        with self._attempts.claiming:
            if self._stopping.is_set():
                return
            with self._attempts.expecting_unknown():
                jobs = self._claim_some(slots, floors)
            at = time.monotonic()
            fresh = self._attempts.add(jobs, asked_at=now)
            self._floors.swept(slots.keys() - floors.keys(), now, at)
            self._floors.claimed(jobs, at)
            self._hand_out(fresh, slots, floors.keys(), now)

    def _claim_some(self, slots: dict[str, int], floors: dict[str, list[int]]) -> list[Claimed]:
        left = dict(slots)

        def claim(which: Among) -> list[Claimed]:
            with self._engine.begin() as connection:
                claimed = self._queries.claim(connection, self._liveness.process_id, left, self._tasks, floors, which)
            for job in claimed:
                left[job.queue] -= 1
            return claimed

        def candidates(which: Among) -> list[int]:
            with self._engine.begin() as connection:
                of_each = [self._queries.to_claim(connection, queue, self._tasks, which) for queue in slots]
            return [job_id for of_queue in of_each for job_id in of_queue]

        return [job for part in self._set_aside.around("its claim", claim, candidates) for job in part]

    def _hand_out(
        self, claimed: list[Attempt], slots: dict[str, int], not_swept: Collection[str], began: float
    ) -> None:
        """Give claimed jobs to their backlogs.

        If a backlog gets fewer jobs than it has room for, it rests until the next poll or sweep.
        """
        poll_at = began + self._lookout.poll_in()
        of_queue: dict[str, list[Attempt]] = {name: [] for name in slots}
        for attempt in claimed:
            of_queue[attempt.job.queue].append(attempt)
        for backlog in self._backlogs:
            if (mine := of_queue.get(backlog.name)) is not None:
                is_full = len(mine) >= slots[backlog.name]
                if not is_full:
                    sweep_at = self._floors.sweep_at(backlog.name) if backlog.name in not_swept else poll_at
                    backlog.rest(min(poll_at, sweep_at), since=began)
                    self._told_alone.add(backlog.name)
                backlog.fill(mine)
                # checked last: a message that has found a free slot is seen here
                if is_full and backlog.name in self._told_alone:
                    self._told_alone.discard(backlog.name)
                    self._lookout.found_more(backlog.name)
