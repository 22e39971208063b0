"""How fast jobs are enqueued, picked up and completed: each case beside another one, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from benchmarks import plain
from benchmarks.plain import Plain
from benchmarks.portable import DECLARED, STEPS, Base
from benchmarks.report import Figure
from benchmarks.versions import Pair, database, pair

_PICK_UPS = 100
_IN_FRONT = 3000
"""The number of jobs that are kept waiting while a snapshot is held."""
Loop = Callable[[Engine, int], float]
"""A function that does something this number of times, and returns how often a second."""


class Drain(NamedTuple):
    """A drain of the jobs of a kind, in a database of its own, after `beside` has added other rows.

    The number of jobs is divided by `share`, and each counts as so many `times`.
    """

    kind: str = "plain"
    workers: int = 1
    beside: Callable[[Pair], object] = lambda _: None
    share: int = 1
    times: int = 1

    def start(self, server: Engine, stack: ExitStack, count: int) -> Callable[[], float]:
        """Return a function that measures once."""
        both = stack.enter_context(pair(server, self.kind, workers=self.workers))
        both.work()
        return lambda: self.times * both.drain(count // self.share, self.beside).rate


class ByHand(NamedTuple):
    """The same by hand: transactions of 8 threads, or with psycopg."""

    is_psycopg: bool = False
    share: int = 1

    def start(self, server: Engine, stack: ExitStack, count: int) -> Callable[[], float]:
        engine = stack.enter_context(database(server))
        if self.is_psycopg:
            return partial(Plain(engine).drain, count)
        Base.metadata.create_all(engine)
        return partial(plain.at_once, engine, count // self.share, plain.add_effects)


def _sql(*statements: str) -> Callable[[Pair], None]:
    def add(both: Pair) -> None:
        with both.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for statement in (*statements, "VACUUM ANALYZE", "CHECKPOINT"):
                connection.execute(text(statement))

    return add


_ENDED = """WITH ended AS (INSERT INTO sqla_jobs (task, args, state, attempt, started_at, finished_at)
        SELECT 'nothing', '{}', 'succeeded', 1, now(), now() FROM generate_series(1, 1000000) RETURNING id)
    INSERT INTO sqla_runs (job_id, attempt, started_at, finished_at, outcome)
        SELECT id, 1, now(), now(), 'succeeded' FROM ended"""
_TOMORROW = """INSERT INTO sqla_jobs (task, args, state, run_at)
    SELECT 'nothing', '{}', 'scheduled', now() + interval '1 day' FROM generate_series(1, 1000000)"""
_ELSEWHERE = """INSERT INTO sqla_jobs (task, args, state, queue)
    SELECT 'nothing', '{}', 'queued', 'queue ' || n % 1000 FROM generate_series(1, 100000) n"""


def _blocked(both: Pair) -> None:
    both.client.ask("block", 30_000)


_DRAIN = "drain"
_SCALE = "drain under a condition, beside one without"
_AFTER = "drain of jobs and one after them, beside plain jobs"
_LIMITS = "behind limits, beside plain ones"
_STEPS = "steps of plain tasks"
_IN_COROUTINES = Drain("transactional coroutine", share=5)
CASES: Mapping[str, Sequence[tuple[str, str, Drain, Drain | ByHand]]] = {
    "speed": [
        (_DRAIN, "one process, beside psycopg", Drain(), ByHand(is_psycopg=True)),
        (_DRAIN, "two processes, beside psycopg", Drain(workers=2), ByHand(is_psycopg=True)),
        (_DRAIN, "transactional, beside 8 threads of sessions", Drain("transactional", share=5), ByHand(share=5)),
    ],
    "scale": [
        (_SCALE, "1,000,000 finished jobs", Drain(beside=_sql(_ENDED)), Drain()),
        (_SCALE, "1,000,000 jobs for tomorrow", Drain(beside=_sql(_TOMORROW)), Drain()),
        (_SCALE, "100,000 jobs in 1,000 other queues", Drain(beside=_sql(_ELSEWHERE)), Drain()),
        (_SCALE, "30,000 jobs behind limits", Drain("beside blocked", beside=_blocked), Drain()),
    ],
    "flow": [
        (_LIMITS, f"{workers}, {name}", Drain(kind, count, share=4), Drain(workers=count, share=4))
        for count, workers in ((1, "1 worker"), (8, "8 workers"))
        for name, kind in (("1 key", "1 key"), ("1,000 keys", "limited"), ("10,000 keys", "10,000 keys"))
    ],
    "workflows": [
        (_AFTER, "after the jobs", Drain("after jobs", share=4), Drain(share=4)),
        (_AFTER, "after their batch", Drain("after a batch", share=4), Drain(share=4)),
        (_STEPS, "beside 8 threads of sessions", Drain("steps", share=120, times=STEPS), ByHand(share=120 // STEPS)),
    ],
    "coroutines": [
        ("drain, coroutines", "no-op, beside plain tasks", Drain("coroutine"), Drain()),
        ("drain, coroutines", "transactional, beside plain tasks", _IN_COROUTINES, Drain("transactional", share=5)),
    ],
}
"""The cases of each section: its heading, the name, what is measured, and what is measured beside it."""


def in_turn(repetitions: int, *runs: Callable[[], float]) -> list[float]:
    """Return the median of each run. The runs take turns, so other load on the machine affects all of them."""
    rounds = [[run() for run in runs] for _ in range(repetitions)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def measure(server: Engine, section: str, count: int, repetitions: int) -> Iterator[Figure]:
    """Measure all cases of a section."""
    if section == "speed":
        yield from _enqueue(server, count, repetitions)
    for heading, name, case, beside in CASES[section]:
        with ExitStack() as stack:
            ours, theirs = (each.start(server, stack, count) for each in (case, beside))
            in_turn(1, ours, theirs)  # the first drain takes longer
            unit = "steps/s" if case.times > 1 else "jobs/s"
            mine, other = in_turn(repetitions, ours, theirs)
            yield Figure(heading, name, unit, mine, other)
    if section == "speed":
        yield from _pick_up(server)


def _enqueue(server: Engine, count: int, repetitions: int) -> Iterator[Figure]:
    task, singles = DECLARED["plain"](), count // 15

    def fill(engine: Engine, count: int) -> float:
        began = time.perf_counter()
        with Session(engine) as session:
            task.enqueue_many(session, ({"i": i} for i in range(count)))
            session.commit()
        return count / (time.perf_counter() - began)

    def rate(loop: Loop, number: int) -> Callable[[], float]:
        def again() -> float:
            with database(server) as engine:
                Base.metadata.create_all(engine)
                return loop(engine, number)

        return again

    def by_threads(loop: Loop) -> Loop:
        return lambda engine, number: plain.at_once(engine, number, loop)

    cases: list[tuple[str, Loop, Loop, int]] = [
        ("one by one, beside insert()", plain.one_by_one, plain.insert_rows, singles),
        ("one by one, beside session.add()", plain.one_by_one, plain.add_objects, singles),
        ("by 8 threads, beside session.add()", by_threads(plain.one_by_one), by_threads(plain.add_objects), singles),
        ("enqueue_many, beside psycopg", fill, lambda engine, number: Plain(engine).enqueue_many(number), count),
    ]
    for name, ours, beside, number in cases:
        mine, other = in_turn(repetitions, rate(ours, number), rate(beside, number))
        yield Figure("enqueue", name, "jobs/s", mine, other)


def _pick_up(server: Engine) -> Iterator[Figure]:
    with pair(server, "pick-up") as both:
        both.work()
        both.pick_ups(1)
        ours, theirs = both.pick_ups(_PICK_UPS), Plain(both.engine).pick_up(_PICK_UPS)
    for which, name in enumerate(("from before the enqueue", "from after the commit")):
        for label, at in (("p50", 0.5), ("p95", 0.95)):
            mine, plains = (waits[which][int(_PICK_UPS * at)] for waits in (ours, theirs))
            yield Figure("pick-up", f"{name}, {label}, beside psycopg", "ms", mine, plains, less_is_better=True)


def held(server: Engine, seconds: int) -> Iterator[Figure]:
    """Compare the rate in the last ten seconds with that in the first ten, while a transaction holds a snapshot."""
    for name, workers, dead in (("one worker", 1, 0), ("8 worker processes", 8, 0), ("1,000,000 dead rows", 1, 10**6)):
        with ExitStack() as stack:
            both = stack.enter_context(pair(server, "plain", workers=workers))
            snapshot = create_engine(both.engine.url, isolation_level="REPEATABLE READ")
            stack.callback(snapshot.dispose)
            stack.enter_context(snapshot.connect()).execute(text("SELECT 1 FROM pg_class LIMIT 1"))
            if dead:  # the index for claims still has entries for them
                both.client.ask("fill", dead)
                _sql("UPDATE sqla_jobs SET state = 'cancelled', finished_at = now()")(both)
            both.work()
            first, last = _feed(both, seconds)
            yield Figure("held snapshot", name, "jobs/s", last, first)


def _feed(both: Pair, seconds: int) -> tuple[float, float]:
    sent, series, began, before = 0, list[tuple[float, int]](), time.monotonic(), both.claimed()
    while (now := time.monotonic() - began) < seconds:
        claimed = both.claimed() - before
        series.append((now, claimed))
        if sent - claimed < _IN_FRONT:
            both.client.ask("fill", 1000)
            sent += 1000
        else:
            time.sleep(0.01)

    def rate(start: float, end: float) -> float:
        (first, ran), *_, (last, ran_then) = (point for point in series if start <= point[0] <= end)
        return (ran_then - ran) / (last - first)

    return rate(0, 10), rate(seconds - 10, seconds)
