"""A bounded model of who looks for jobs behind limits and when: `Lane` itself, between all that may come meanwhile.

Two workers of one slot each serve some groups of jobs. All groups are behind one limit, of places or of a rate. A
worker sleeps until it is woken: by a message, the end of its own job, its free slot, or the time of the rate. Nobody
polls, and nothing goes wrong. So a state from which not all jobs can end is a lost wake-up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqla_jobs.worker.backlog import Backlog
from sqla_jobs.worker.lane import Lane
from tests.limits.explorer import Explored, Move, explore

_NEW, _QUEUED, _ENDED = -3, -2, -1
"""States of a job. From 0 on, the worker that runs it."""
_BACKLOG = Backlog("default", 1)


class Worker(NamedTuple):
    """What one worker knows."""

    began: object = 1
    exhausted: object = 1
    """What its lane remembers. To begin with, the first round has found nothing."""
    cursor: int = 0
    news: int = 1
    is_awake: bool = False
    look: tuple[int | None, bool] | None = None
    """A look under way: the job that it claimed, once it has; and whether it came to the last group."""
    is_sent: bool = False
    room: int = -1
    """The free slots that it has counted, before it says that it waits for one."""
    inbox: bool = False
    ended: int = 0
    """Ends of its jobs that it has not noticed."""
    left: int = 0
    """Places that it has not filled, and of which it has told nobody."""
    timer: bool = False
    """It knows when the rate lets one more start."""
    is_due: bool = False
    """That time has come."""

    def with_news(self) -> Worker:
        """After news, which is another one than any that is remembered."""
        remembered = {self.news, self.began, self.exhausted}
        return self._replace(news=min({1, 2, 3, 4} - remembered), is_awake=True)

    def rests(self) -> bool:
        """Whether it has nothing to look for."""
        return self.lane().rests(0.0) and not self.is_due

    def lane(self) -> Lane:
        """Its lane, as it is now."""
        lane = Lane(_BACKLOG)
        lane.token, lane._began, lane.exhausted = self.news, self.began, self.exhausted
        return lane

    def with_lane(self, lane: Lane) -> Worker:
        """With what its lane remembers now."""
        return self._replace(began=lane._began, exhausted=lane.exhausted)


class State(NamedTuple):
    """All that there is."""

    jobs: tuple[int, ...]
    workers: tuple[Worker, ...]
    used: bool = False
    """The start of the present window, of a rate."""

    def but(self, n: int, **changed: Any) -> State:
        """With worker `n` changed."""
        worker = self.workers[n]._replace(**changed)
        return self._replace(workers=(*self.workers[:n], worker, *self.workers[n + 1 :]))

    def job(self, n: int, state: int) -> State:
        """With job `n` changed."""
        return self._replace(jobs=(*self.jobs[:n], state, *self.jobs[n + 1 :]))


@dataclass(frozen=True)
class World:
    """What there is, and which wake-ups are there."""

    groups: tuple[int, ...]
    """Of each job."""
    serves: tuple[tuple[int, ...], ...] = ((0, 1), (0, 1))
    """The groups of each worker, in the order of its walk."""
    limit: int = 1
    """Of places; 0: a rate of one start a window."""
    tells_of_enqueues: bool = True
    notices_ends: bool = True
    tells_others: bool = True
    wakes_for_slots: bool = True
    has_timer: bool = True
    keeps_its_time: bool = True
    """It wakes at the time for which it rests, even if that time comes before it sleeps."""
    repeats_rounds: bool = True
    """A round in which anything was claimed is followed by another."""
    begins_with_news: bool = True
    """A round is of the news of its begin, not of its end."""

    def explored(self) -> Explored:
        """All that can happen."""
        begin = State(tuple(_NEW for _ in self.groups), tuple(Worker() for _ in self.serves))
        return explore(begin, self._moves, lambda state: set(state.jobs) == {_ENDED})

    def _moves(self, s: State) -> Iterator[Move[State]]:
        for n, job in enumerate(s.jobs):
            if job == _NEW:
                to = s.job(n, _QUEUED)
                yield Move(f"{n} is committed", self._told(to) if self.tells_of_enqueues else to)
            elif job >= 0 and not s.workers[job].is_sent:  # it has its answer
                to = s.job(n, _ENDED)
                yield Move(f"{n} ends", to.but(job, ended=to.workers[job].ended + 1))
        if s.used:
            yield Move("a window ends", s._replace(used=False))
        for n, worker in enumerate(s.workers):
            for label, to in self._steps(s, n, worker):
                yield Move(f"worker {n} {label}", to)

    @staticmethod
    def _told(s: State) -> State:
        return s._replace(workers=tuple(worker._replace(inbox=True) for worker in s.workers))

    def _steps(self, s: State, n: int, worker: Worker) -> Iterator[tuple[str, State]]:
        if worker.inbox:
            yield "hears a message", s.but(n, **worker.with_news()._replace(inbox=False)._asdict())
        if worker.ended:
            yield "notices an end", self._noticed(s, n, worker)
        if worker.timer and not s.used:
            yield "wakes at the time of the rate", s.but(n, timer=False, is_due=True, is_awake=True)
        if worker.look is not None:
            yield ("gets its answer", self._answered(s, n, worker)) if worker.is_sent else self._claim(s, n, worker)
        elif worker.is_awake or worker.room >= 0:
            yield from self._turn(s, n, worker)
        elif worker.left and self.tells_others:
            yield "tells others", self._tells(s, n, worker)

    def _noticed(self, s: State, n: int, worker: Worker) -> State:
        """The end is stored, so its place is free; its slot is, too."""
        s = s.but(n, ended=worker.ended - 1)
        if self.limit and self.notices_ends:
            s = s.but(n, **s.workers[n].with_news()._replace(left=worker.left + 1)._asdict())
        is_woken = worker.is_awake or (self.wakes_for_slots and not worker.rests())
        return s.but(n, is_awake=is_woken or s.workers[n].is_awake)

    def _turn(self, s: State, n: int, worker: Worker) -> Iterator[tuple[str, State]]:
        """One turn of its loop: rest, wait for a slot, or look."""
        if worker.rests():
            s = s.but(n, is_awake=False, room=-1)
            yield "rests", s
            if worker.timer and not s.used and not self.keeps_its_time:
                yield "misses the time of the rate", s.but(n, timer=False, is_due=True)
        elif worker.room < 0:
            yield "counts its free slots", s.but(n, is_awake=False, room=self._free_slots(s, n, worker))
        elif worker.room == 0:
            yield "waits for a slot", s.but(n, room=-1)
        else:
            lane = worker.lane()
            if worker.cursor == 0:
                lane.begin()
                s = s.but(n, timer=False, is_due=False)
            yield (
                "begins a look",
                s.but(n, **s.workers[n].with_lane(lane)._asdict()).but(n, look=(None, False), room=-1),
            )

    @staticmethod
    def _free_slots(s: State, n: int, worker: Worker) -> int:
        """A slot is free once its worker has noticed the end."""
        return 0 if n in s.jobs or worker.ended else 1

    def _claim(self, s: State, n: int, worker: Worker) -> tuple[str, State]:
        """The statement: from the cursor on the first group of which a job waits, if the limit admits one more."""
        is_free = not s.used if self.limit == 0 else sum(job >= 0 for job in s.jobs) < self.limit
        for place, group in enumerate(self.serves[n][worker.cursor :], worker.cursor):
            waiting = [job for job, state in enumerate(s.jobs) if state == _QUEUED and self.groups[job] == group]
            if waiting and is_free:
                to = s.job(waiting[0], n)._replace(used=self.limit == 0)
                return f"claims {waiting[0]}", to.but(n, look=(waiting[0], False), cursor=place + 1, is_sent=True)
            if waiting and self.limit == 0 and self.has_timer:
                s = s.but(n, timer=True)
        return "finds nothing", s.but(n, look=(None, True), cursor=0, is_sent=True)

    def _answered(self, s: State, n: int, worker: Worker) -> State:
        assert worker.look is not None
        claimed, is_last = worker.look
        cursor = 0 if worker.cursor >= len(self.serves[n]) else worker.cursor
        lane = worker.lane()
        if claimed is not None and self.repeats_rounds:
            lane.spoil()
        if is_last or (cursor == 0 and not self.repeats_rounds):
            if not self.begins_with_news:
                lane.begin()
            lane.rest(math.inf)
        left = max(0, worker.left - (claimed is not None))
        s = s.but(n, **worker.with_lane(lane)._asdict())
        return s.but(n, cursor=cursor, look=None, is_sent=False, is_awake=True, left=left)

    def _tells(self, s: State, n: int, worker: Worker) -> State:
        s = s.but(n, left=0)
        free = self.limit - sum(job >= 0 for job in s.jobs)
        was_full = 1 <= free <= worker.left * len(self.serves)
        return self._told(s) if was_full and _QUEUED in s.jobs else s
