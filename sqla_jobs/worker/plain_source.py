"""The source of jobs without limits. It promotes due jobs, and then claims from all queues in one statement."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from sqla_jobs.database.subscribers import LIMITS
from sqla_jobs.execution.held_job import Attempt
from sqla_jobs.queries import Among, Claimed
from sqla_jobs.rules.outcomes import Outcome
from sqla_jobs.worker.floors import ScanFloors
from sqla_jobs.worker.lane import Lane
from sqla_jobs.worker.limited_source import LimitedSource
from sqla_jobs.worker.services import WorkerServices


class PlainSource:
    """Promotes due jobs, claims jobs that code does not limit, and gives back stalled ones."""

    suffix: str = ""

    def __init__(self, services: WorkerServices, tasks: Sequence[str], limited: LimitedSource) -> None:
        self._queries = services.queries
        self._set_aside = services.set_aside
        self._engine = services.claims
        self._liveness = services.liveness
        self._finisher = services.finisher
        self._lookout = services.lookout
        self._resolver = services.resolver
        self._tasks = tuple(tasks)
        self._limited = limited
        self._floors = ScanFloors(services.settings.queues)
        self.lanes: Sequence[Lane] = [Lane(backlog) for backlog in services.backlogs]
        for lane in self.lanes:
            lane.backlog.plain = lane

    def sweep_soon(self) -> None:
        """Look below the floors, too, in the next look."""
        self._floors.sweep_soon()

    def prepare(self) -> None:
        """Promote if that is due, and give back stalled jobs."""
        now = time.monotonic()
        for lane in self.lanes:
            for attempt in lane.backlog.stalled(now):
                self._finisher.put(attempt.ended(Outcome.released()))
        if now >= self._lookout.promote_at:
            self._promote(now)

    def _promote(self, now: float) -> None:
        had_limits = self._lookout.has_limits
        is_news = self._lookout.promote(now)
        if is_news or (self._lookout.has_limits and not had_limits):
            self._limited.heard(LIMITS)  # before `drain` can find that no job is due any more
        else:
            self._limited.poll()
        if self._lookout.has_blocked:
            self._resolver.expect()
        if is_news:
            for lane in self.lanes:
                lane.tell()

    def parts(self, rooms: Mapping[Lane, int]) -> Sequence[Mapping[Lane, int]]:
        return [rooms] if rooms else []

    def claim(self, rooms: Mapping[Lane, int]) -> tuple[list[Claimed], set[int]]:
        """Claim jobs. A lane that gets fewer than it has room for rests until the next poll or sweep."""
        began = time.monotonic()
        for lane in rooms:
            lane.begin()
        slots = {lane.backlog.name: room for lane, room in rooms.items()}
        self._floors.workers = self._lookout.workers
        floors = self._floors.of(slots, began)
        jobs, left = self._claim_some(slots, floors)
        ended = time.monotonic()
        self._floors.swept(slots.keys() - floors.keys(), began, ended)
        self._floors.claimed(jobs, ended)
        poll_at = began + self._lookout.poll_in()
        for lane in rooms:
            if left[name := lane.backlog.name] > 0:
                lane.rest(min(poll_at, self._floors.sweep_at(name)) if name in floors else poll_at)
        return jobs, set()

    def _claim_some(self, slots: dict[str, int], floors: dict[str, list[int]]) -> tuple[list[Claimed], dict[str, int]]:
        """Return jobs, and the room that is left in each queue."""
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

        parts = self._set_aside.around("its claim", claim, candidates)
        return [job for part in parts for job in part], left

    def fill(self, lane: Lane, attempts: list[Attempt]) -> None:
        lane.backlog.fill(attempts)

    def finish(self) -> float:
        return min(self._lookout.promote_at, *(lane.backlog.stalls_at for lane in self.lanes))

    def forget(self) -> None:
        """Forget nothing: the floors hold on another server, too, and sweeps look below them."""
