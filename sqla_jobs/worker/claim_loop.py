"""The loops that claim jobs, each from one source."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from sqla_jobs.execution.held_job import Attempt
from sqla_jobs.queries import Claimed
from sqla_jobs.rules.outcomes import Outcome
from sqla_jobs.runtime.loop import Loop
from sqla_jobs.worker.lane import Lane
from sqla_jobs.worker.services import WorkerServices

_UNWRITTEN = 5000
"""Claiming pauses while at least this many ends wait to be stored."""
_HELD_UP = 0.01
"""Seconds between checks while claiming is paused."""

OneLane = TypeVar("OneLane", bound=Lane)


class Source(Protocol[OneLane]):
    """Where jobs come from: the plain claim, or the claim behind limits. Only one thread at a time may use it."""

    suffix: str
    """What messages about jobs of this source add to the name of their queue."""
    lanes: Sequence[OneLane]

    def prepare(self) -> None:
        """Do what comes before a look: more jobs may be ready to start afterwards."""
        ...

    def parts(self, rooms: Mapping[OneLane, int]) -> Sequence[Mapping[OneLane, int]]:
        """Return the claims to send, each with the lanes that it serves and the room in each."""
        ...

    def claim(self, rooms: Mapping[OneLane, int]) -> tuple[list[Claimed], set[int]]:
        """Claim jobs. Return them, and the run ids of those that may not begin."""
        ...

    def fill(self, lane: OneLane, attempts: list[Attempt]) -> None:
        """Pass claimed jobs to the lane's backlog."""
        ...

    def finish(self) -> float:
        """Do what comes after the claims. Return when to look again although each lane rests or is full."""
        ...

    def forget(self) -> None:
        """Forget what earlier claims have found, after an error."""
        ...


class ClaimLoop(Generic[OneLane]):
    """Fills the backlogs from one source, in its own thread.

    It looks after each `tell`, when a slot becomes free whose lane does not rest, and when a rest is over.
    """

    def __init__(self, services: WorkerServices, source: Source[OneLane], what: str, *, name: str) -> None:
        self._attempts = services.attempts
        self._liveness = services.liveness
        self._finisher = services.finisher
        self._lookout = services.lookout
        self._source = source
        self.stepping: threading.RLock = threading.RLock()
        """Held during each step: while another holds it, no claim is in progress."""
        self.loop: Loop = Loop(what, self.step, name=name, server=services.claims)
        for lane in source.lanes:
            lane.wake = self.loop.news.tell

    def step(self) -> float:
        """Look at the source once, unless all of its lanes rest or are full. Return when to look again."""
        with self.stepping:
            try:
                return self._look()
            except Exception:
                self._source.forget()
                raise

    def look_everywhere(self, prepare: Callable[[], None]) -> None:
        """Call `prepare`, and take steps in the calling thread until each lane rests or is full."""
        with self.stepping:
            prepare()
            while self.step() <= time.monotonic() and not self.loop.stopping.is_set():
                pass

    def _look(self) -> float:
        self._source.prepare()
        now = time.monotonic()
        rooms = {lane: room for lane in self._source.lanes if (room := lane.room(now))}
        if rooms and not self._may_claim:
            self._tell_others(rooms)
            return now + _HELD_UP
        for part in self._source.parts(rooms):
            if self.loop.stopping.is_set():
                break
            self._claim(part)
        now = time.monotonic()
        self._tell_others(lane for lane in self._source.lanes if not (lane.rests(now) or lane.backlog.has_free_slot))
        return min(self._source.finish(), *(lane.next_at(now) for lane in self._source.lanes))

    @property
    def _may_claim(self) -> bool:
        """True if the last heartbeat is recent and only a few ends are waiting to be stored."""
        return self._liveness.is_sure and self._finisher.waiting < _UNWRITTEN

    def _claim(self, rooms: Mapping[OneLane, int]) -> None:
        asked_at = time.monotonic()
        with self._attempts.expecting_unknown():
            jobs, withheld = self._source.claim(rooms)
        fresh = self._attempts.add(jobs, asked_at=asked_at)
        of_queue: dict[str, list[Attempt]] = {lane.backlog.name: [] for lane in rooms}
        for attempt in fresh:
            if withheld and attempt.job.run_id in withheld:
                self._finisher.put(attempt.ended(Outcome.released()))
            else:
                of_queue[attempt.job.queue].append(attempt)
        for lane in rooms:
            self._source.fill(lane, of_queue[lane.backlog.name])
        self._tell_others(lane for lane, room in rooms.items() if len(of_queue[lane.backlog.name]) >= room)

    def _tell_others(self, lanes: Iterable[Lane]) -> None:
        """Let other workers look, too, unless they were told since this worker last found these lanes exhausted."""
        for lane in lanes:
            if lane.may_tell:
                lane.may_tell = False
                self._lookout.found_more(lane.backlog.name + self._source.suffix)
