"""The claimer, which moves jobs from the database into the backlogs over its own connections."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack

from sqla_jobs.database.subscribers import BLOCKED, LIMITS
from sqla_jobs.queries import Among, Lease
from sqla_jobs.worker.claim_loop import ClaimLoop
from sqla_jobs.worker.lane import Lane
from sqla_jobs.worker.limited_source import LimitedSource
from sqla_jobs.worker.plain_source import PlainSource
from sqla_jobs.worker.services import WorkerServices


class Claimer:
    """Two loops that claim jobs, one without and one behind limits. Passes news on to them."""

    def __init__(
        self, services: WorkerServices, tasks: Sequence[str], *, all_tasks: Sequence[str], limited: LimitedSource
    ) -> None:
        self._services = services
        self._attempts = services.attempts
        self._backlogs = services.backlogs
        self._lookout = services.lookout
        self._resolver = services.resolver
        self._all_tasks = tuple(all_tasks)
        self._limited = limited
        self._plain = PlainSource(services, tasks, limited)
        self._plain_loop = ClaimLoop(services, self._plain, "claiming", name="sqla_jobs-claim")
        self._limited_loop = ClaimLoop(services, limited, "claiming behind limits", name="sqla_jobs-limited")

    def start(self) -> None:
        self._plain_loop.loop.start()
        self._limited_loop.loop.start()

    def stop(self, timeout: float) -> None:
        """Stop claiming. Wait up to `timeout` seconds for claims in progress, whose jobs must be given back, too."""
        until = time.monotonic() + timeout
        loops = (self._plain_loop.loop, self._limited_loop.loop)
        for loop in loops:
            loop.stopping.set()
        for loop in loops:
            loop.stop(max(0.0, until - time.monotonic()))

    def look_again(self) -> bool:
        """Request a look for jobs in all queues, even below the floors. Return whether this worker answers for them."""
        self._plain.sweep_soon()
        self._limited.poll()
        return self._heard_plain("")

    def heard(self, queue: str) -> bool:
        """Record that `queue` has new jobs; "" means any queue. This does not wait.

        Return whether this worker answers for the jobs: each of their lanes has a free slot, and may tell others. Then
        a look begins after the news, and sees the jobs. After a look, the lane rests since no job is left, or a slot is
        free and the next look follows, or others are told. If others were told since the return, they too began to look
        after the news.
        """
        if queue == BLOCKED:
            self._resolver.told()
            return True
        if not queue:
            self._resolver.told_of_changes()
        answers = True
        if not queue.endswith(LIMITS):
            answers = self._heard_plain(queue)
        elif queue != LIMITS:  # one of the jobs may have a short delay
            self._lookout.expect_new(is_busy=False)
            self._plain_loop.loop.tell()
        if self._limited.heard(queue):
            answers &= _answer(self._limited.lanes, queue.removesuffix(LIMITS))
        return answers

    def _heard_plain(self, queue: str) -> bool:
        is_busy = True
        for lane in self._plain.lanes:
            if queue in ("", lane.backlog.name):
                lane.tell()
                is_busy &= not lane.backlog.has_free_slot
        self._lookout.expect_new(is_busy=is_busy)
        if not is_busy:
            self._plain_loop.loop.tell()
        return _answer(self._plain.lanes, queue)

    @property
    def has_free_slot(self) -> bool:
        """True if a slot of any queue is waiting for a job."""
        return any(backlog.has_free_slot for backlog in self._backlogs)

    def expect(self, delay: float) -> None:
        """Expect a job to be due in `delay` seconds."""
        if self._lookout.expect(delay):
            self._plain_loop.loop.tell()

    @property
    def trouble(self) -> str | None:
        """The error that prevents claims; `None` if the last try succeeded."""
        return self._plain_loop.loop.retry.trouble or self._limited_loop.loop.retry.trouble

    def claim_some(self) -> bool:
        """Claim behind limits in the calling thread.

        Return False if nothing was claimed, the worker holds no jobs, and all queues are resting.
        """
        if not self._limited.is_of_use:
            return False
        self._limited_loop.look_everywhere(self._limited.look_anew)
        return len(self._attempts) > 0 or not self._limited.rests

    def unknown_leases(self, process_id: uuid.UUID) -> list[Lease]:
        """Return the leases of claims whose replies never arrived. Return none while a claim is in progress."""
        with ExitStack() as held:
            for loop in (self._plain_loop, self._limited_loop):
                if not loop.stepping.acquire(blocking=False):
                    return []
                held.callback(loop.stepping.release)
            known, age = self._attempts.run_ids(), self._services.settings.heartbeat
            with self._services.engine.begin() as connection:
                return self._services.queries.leases(connection, process_id, known, age=age)

    def is_due(self) -> bool:
        """Return whether a job in these queues is due or held up, or this worker holds a job that has not ended."""
        services, attempts, held_up = self._services, self._attempts, [*self._limited.held_up]
        others = Among(set_aside=services.set_aside.reasons)
        # otherwise jobs locked by a claim in progress would be missed
        with self._plain_loop.stepping, self._limited_loop.stepping, services.claims.begin() as connection:
            if attempts:  # checked first: the query finds a job that ends in between and is due again
                return True
            queues, of_queue = list(services.settings.queues), services.queries.to_claim_limited
            if held_up and any(of_queue(connection, queue, held_up, others) for queue in queues):
                return True
            return services.queries.is_due(connection, queues, self._all_tasks, others)


def _answer(lanes: Sequence[Lane], queue: str) -> bool:
    """Return whether each lane of the queue has a free slot and may tell others. "" means any queue."""
    of_queue = [lane for lane in lanes if queue in ("", lane.backlog.name)]
    return bool(of_queue) and all(lane.may_tell and lane.backlog.has_free_slot for lane in of_queue)
