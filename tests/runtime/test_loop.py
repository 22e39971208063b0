"""No order of steps and news loses a wake-up: real loops and lanes, between all that other threads may do meanwhile.

Nobody polls here. So a state from which not all jobs can end is a lost wake-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from sqla_jobs.runtime.loop import Loop, News
from sqla_jobs.worker.backlog import Backlog
from sqla_jobs.worker.lane import Lane
from tests.limits.explorer import Explored
from tests.runtime.threads_explored import World, explore_threads, pause


class Watched:
    """An attribute that others may change at any time: each look at it, and each change, is a step of its own."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"watched_{name}"

    def __get__(self, owner: Any, kind: type) -> Any:
        pause()
        return vars(owner)[self._name]

    def __set__(self, owner: Any, value: Any) -> None:
        if self._name in vars(owner):
            pause()
        vars(owner)[self._name] = value


class SeenEvent:
    """An event without a lock. Nobody's time runs out, unless it is over already."""

    def __init__(self, pause: Callable[[], None]) -> None:
        self._is_set = False
        self._pause = pause

    def set(self) -> None:
        self._pause()
        self._is_set = True

    def clear(self) -> None:
        self._pause()
        self._is_set = False

    def wait(self, timeout: float) -> None:
        if timeout:
            pause(lambda: self._is_set)


class CoarseNews(News):
    """Fewer steps, for more workers."""

    token = Watched()

    def __init__(self) -> None:
        self.token = object()
        self._waits = False
        self._event = SeenEvent(lambda: None)  # type: ignore[assignment]


class SeenNews(CoarseNews):
    _waits = Watched()

    def __init__(self) -> None:
        super().__init__()
        self._event = SeenEvent(pause)  # type: ignore[assignment]


class SeenLane(Lane):
    token = Watched()


JOB: Any = "a job"


class Database:
    """What has been committed."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.waiting = self.running = self.ended = 0

    def claim(self) -> bool:
        is_found = self.waiting > 0
        self.waiting -= is_found
        self.running += is_found
        return is_found


class OneTry:
    def run(self, step: Callable[[], float]) -> float:
        return step()


class Worker:
    """One slot, and a loop that fills it."""

    lane_of: type[SeenLane] = SeenLane
    loop_of: type[Loop] = Loop
    news_of: type[CoarseNews] = SeenNews

    def __init__(self, world: World, database: Database) -> None:
        self.world = world
        self.database = database
        self.number = sum(isinstance(one, Backlog) for one in world.shared)
        self.loop = object.__new__(self.loop_of)  # without its thread
        self.loop.news, self.loop.retry = self.news_of(), OneTry()  # type: ignore[assignment]
        self.loop._step, self.loop._apart = self.step, 0.0
        self.backlog = Backlog("default", 1)
        self.backlog.begin = lambda _: world.thread(f"the job of loop {self.number}", self.work)
        self.lane, never = self.lane_of(self.backlog), Lane(self.backlog)
        self.lane.wake = self.loop.tell
        never.exhausted = never.token
        self.backlog.plain, self.backlog.behind_gates = self.lane, never
        world.shared += [self.backlog, self.lane, self.loop.news, self.loop.news._event]
        world.thread(f"loop {self.number}", self.run)

    def run(self) -> None:
        while True:
            self.loop.turn()

    def step(self) -> float:
        pause()
        if not self.backlog.has_free_slot or not self.database.claim():
            return math.inf
        self.backlog.fill([JOB])
        return 0.0

    def work(self) -> None:
        self.database.running -= 1
        self.database.ended += 1
        self.backlog.next()

    def heard(self) -> None:
        self.loop.tell()


class WorkerThatRests(Worker):
    """It looks for nothing in its free slot, once the source was found exhausted."""

    def step(self) -> float:
        if not self.backlog.has_free_slot or self.lane.rests(0.0):
            return math.inf
        self.lane.begin()
        next_at = super().step()
        if next_at == math.inf:
            self.lane.rest(math.inf)
        return next_at

    def heard(self) -> None:
        self.lane.tell()
        pause()
        if self.backlog.has_free_slot:
            self.loop.tell()


pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def explored(worker: type[Worker], *, workers: int, jobs: int) -> Explored:
    def make() -> World:
        world, database = World(), Database(jobs)
        world.shared.append(database)
        world.has_ended = lambda: database.ended == jobs
        those = [worker(world, database) for _ in range(workers)]

        def enqueue() -> None:
            for _ in range(jobs):
                database.waiting += 1
                for _number, one in enumerate(those):  # a state is known by numbers, not by the place of an iterator
                    one.heard()

        world.thread("an application", enqueue)
        return world

    return explore_threads(make)


class Coarse(Worker):
    news_of = CoarseNews


class CoarseThatRests(WorkerThatRests):
    news_of = CoarseNews


@pytest.mark.parametrize(
    ("worker", "workers", "jobs"),
    [(Worker, 1, 2), (Coarse, 2, 1), (WorkerThatRests, 1, 1), (CoarseThatRests, 1, 2)],
)
def test_no_order_of_steps_and_news_loses_a_wake_up(worker: type[Worker], workers: int, jobs: int) -> None:
    found = explored(worker, workers=workers, jobs=jobs)
    assert found.broken is None, found.steps
    assert found.states > 300, "this is no exploration"


class TokenAfterTheStep(Loop):
    def turn(self) -> None:
        next_at = self.retry.run(self._step)
        token = self.news.token
        self.news.wait(unless_changed_since=token, until=next_at or 0.0)


class ClearsAfterTheComparison(SeenNews):
    def wait(self, *, unless_changed_since: object, until: float) -> None:
        self._waits = True
        if self.token is unless_changed_since:
            self._event.clear()
            self._event.wait(until)


class TokenAfterTheClaim(SeenLane):
    def begin(self) -> None:
        """Note nothing yet."""

    def rest(self, until: float) -> None:
        super().begin()
        super().rest(until)


@pytest.mark.parametrize(
    ("worker", "changed"),
    [
        (Worker, {"loop_of": TokenAfterTheStep}),
        (Worker, {"news_of": ClearsAfterTheComparison}),
        (WorkerThatRests, {"lane_of": TokenAfterTheClaim}),
    ],
)
def test_in_each_other_order_one_is_lost(worker: type[Worker], changed: dict[str, Any]) -> None:
    mutant = type("Mutant", (worker,), changed)
    assert explored(mutant, workers=1, jobs=1).broken == "stuck"
