"""The source of jobs behind limits, which fills slots that are free or soon will be."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from sqla_jobs.database.subscribers import LIMITS
from sqla_jobs.execution.held_job import Attempt
from sqla_jobs.queries import Claimed, RunEnd
from sqla_jobs.queries.claim_limited import Gates
from sqla_jobs.rules.every import Every
from sqla_jobs.rules.limits import holds_a_place
from sqla_jobs.worker.backfill import Backfill
from sqla_jobs.worker.group_walk import GroupWalk
from sqla_jobs.worker.services import WorkerServices

_POLLS = 3.9
"""The number of polls after which to look even without a message."""
_APART = 0.1
"""The shortest time between messages to other workers about freed places, in seconds."""


class _Place(NamedTuple):
    """What a limited job occupies while it runs: a place behind its gates, and one in its queue."""

    queue: str
    gates: Gates


class LimitedSource:
    """Claims jobs behind limits.

    A queue rests once a complete round through its groups has claimed nothing, if the round began after the last news.
    News, such as a new job, an ended attempt or a changed limit, wakes every queue. When a rate allows one more start,
    this wakes only the queue that waits for it. When a slot becomes free in a queue that is not resting, the queue's
    round continues. Polls make up for lost messages.

    The source does nothing while neither code nor an operator limits anything.
    """

    suffix: str = LIMITS

    def __init__(self, services: WorkerServices, backfill: Backfill, tasks: Sequence[str]) -> None:
        self._services = services
        self._liveness = services.liveness
        self._lookout = services.lookout
        self._backfill = backfill
        self._ended = deque[_Place]()
        """The places of jobs that have ended since the last look. Any thread may add to them."""
        self._freed = Counter[_Place]()
        """The freed places that no job has taken here and of which other workers have not been told."""
        self._tell_at = 0.0
        """When other workers may be told again, by `time.monotonic()`."""
        self._polling = Every(_POLLS * services.settings.poll)
        self.lanes: Sequence[GroupWalk] = [
            GroupWalk(services, backfill, tuple(tasks), backlog) for backlog in services.backlogs
        ]
        for walk in self.lanes:
            walk.backlog.behind_gates = walk

    def tell(self) -> None:
        """Wake every queue: jobs that could not start before may start now."""
        if not self.is_of_use:
            return  # the promotion that finds the first limit tells
        news = object()
        for walk in self.lanes:
            walk.token = news
        self.lanes[0].wake()

    def heard(self, what: str) -> bool:
        """Wake every queue if a message may concern limited jobs, and look soon for jobs that lack gates.

        Jobs that only operators limit are announced like unlimited jobs, and without gates. An empty message may be
        about changed limits. Return whether the queues are woken.
        """
        limits = self._backfill.limits
        if not what or limits.by_task or self._backfill.is_behind:
            self._backfill.tell()
        elif not limits.queues and not what.endswith(LIMITS):
            return False
        self.tell()
        return True

    def poll(self) -> None:
        """Every four polls, look at some groups to make up for lost messages."""
        if self._polling.is_over():
            for walk in self.lanes:
                walk.poll()
            self.lanes[0].wake()

    def ended(self, ends: Sequence[RunEnd]) -> None:
        """Free the places that ended jobs held behind limits and in limited queues. Any thread may call this."""
        limits = self._backfill.limits
        # an operator may have added gates during the run
        jobs = [end.lease for end in ends if isinstance(end.lease, Claimed)]
        places = [_Place(job.queue, job.gates or tuple(limits.by_task.get(job.task, ()))) for job in jobs]
        if freed := [one for one in places if one.queue in limits.queues or any(map(holds_a_place, one.gates))]:
            self._ended.extend(freed)
            self.tell()

    def limits(self, job: Claimed) -> bool:
        """Return whether the job counts against a limit, as far as this worker knows. Any thread may call this."""
        limits = self._backfill.limits
        return bool(job.gates or job.queue in limits.queues or job.task in limits.by_task)

    def look_anew(self) -> None:
        """Prepare for a look at all groups, and for jobs that lack gates."""
        self.tell()
        self._backfill.look()

    @property
    def rests(self) -> bool:
        """True if all queues are resting, so that only news can make a job start."""
        now = time.monotonic()
        return not self.is_of_use or all(walk.rests(now) for walk in self.lanes)

    def leave(self) -> None:
        """Tell other workers of the freed places that this worker has not filled."""
        self._take_ended()
        self._tell_others()

    @property
    def held_up(self) -> Collection[str]:
        """The tasks whose jobs may not start, because another transaction has locked a row."""
        return self._backfill.limits.stored.held_up

    @property
    def is_of_use(self) -> bool:
        """True if code or an operator limits anything."""
        return self._backfill.is_limited or self._lookout.has_limits

    def prepare(self) -> None:
        """Give jobs the gates that they lack, if that is due."""
        news = self.lanes[0].token  # read before the limits: the first limit is news
        if not self.is_of_use:
            for walk in self.lanes:
                walk.rest_with(news)
        elif time.monotonic() >= self._backfill.due_at and self._backfill.look():
            self.tell()  # jobs that had no gates before may start now

    def parts(self, rooms: Mapping[GroupWalk, int]) -> Sequence[Mapping[GroupWalk, int]]:
        """Return a claim for each queue."""
        self._take_ended()
        return [{walk: room} for walk, room in rooms.items()]

    def claim(self, rooms: Mapping[GroupWalk, int]) -> tuple[list[Claimed], set[int]]:
        """Claim jobs. Those that lack gates may not begin, nor those whose lease may be gone already.

        If this process was suspended in the meantime, other processes may consider it dead.
        """
        ((walk, room),) = rooms.items()
        jobs = walk.claim(room)
        if self._freed:
            self._freed -= Counter(_Place(job.queue, job.gates) for job in jobs)
        missing = self._backfill.missing(jobs)
        held_by = self._liveness.process_id if self._liveness.is_sure else None
        return jobs, missing | {job.run_id for job in jobs if job.process_id != held_by}

    def fill(self, lane: GroupWalk, attempts: list[Attempt]) -> None:
        """Pass jobs to the backlog that hold places behind limits."""
        lane.backlog.fill_first(attempts)

    def finish(self) -> float:
        """Tell other workers of freed places, if that is due: they may serve other queues or tasks."""
        if not self.is_of_use:
            return math.inf
        if time.monotonic() >= self._tell_at:
            self._tell_others()
        return min(self._backfill.due_at, self._tell_at if self._freed else math.inf)

    def _take_ended(self) -> None:
        ended = [self._ended.popleft() for _ in range(len(self._ended))]
        self._freed.update(ended)
        for walk in self.lanes:
            walk.ended.extend(place.gates for place in ended)

    def _tell_others(self) -> None:
        if self._freed:
            gates = {gate for place in self._freed for gate in (f"@{place.queue}", *place.gates) if gate[0] not in "%~"}
            with self._services.claims.begin() as connection:
                self._services.queries.tell_of_freed_places(connection, gates)
            self._freed.clear()
            self._tell_at = time.monotonic() + _APART

    def forget(self) -> None:
        """Forget the rounds."""
        for walk in self.lanes:
            walk.forget()
