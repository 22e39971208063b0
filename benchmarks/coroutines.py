"""Compares coroutine tasks with plain tasks, and with `AsyncSession` transactions without jobs.

Run as a program, this is the worker process of `benchmarks.work`, with coroutine tasks declared.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from benchmarks import work
from benchmarks.report import Figure
from benchmarks.speed import claims, done, drain, fill, in_turn
from benchmarks.work import Effect, jobs

PROGRAM = "benchmarks.coroutines"
_SLEEPERS = 2000
_AT_ONCE = 8
_IN_LOOP = (
    "import asyncio, sys; from benchmarks.coroutines import transactions; "
    "print(asyncio.run(transactions(sys.argv[1], int(sys.argv[2]))))"
)


@jobs.task
async def nothing_awaited(i: int) -> None: ...


@jobs.task
async def write_awaited(session: AsyncSession, i: int) -> None:
    session.add(Effect(n=i))


@jobs.task
async def sleep(i: int) -> None:
    await asyncio.sleep(1)


def measure(engine: Engine, count: int, repetitions: int) -> Iterator[Figure]:
    awaited, beside, plain = in_turn(
        repetitions,
        partial(drain, engine, count, task=nothing_awaited, program=PROGRAM),
        partial(drain, engine, count, program=PROGRAM),
        partial(drain, engine, count),
    )
    yield Figure("drain, coroutines", "no-op, beside plain tasks", "jobs/s", awaited, plain)
    yield Figure("drain, coroutines", "plain tasks beside an event loop, and without", "jobs/s", beside, plain)
    written, by_hand = in_turn(
        repetitions,
        partial(drain, engine, count // 5, task=write_awaited, program=PROGRAM),
        partial(_transactions_elsewhere, engine, count // 5),
    )
    yield Figure("drain, coroutines", "transactional, beside AsyncSession alone", "jobs/s", written, by_hand)
    seconds, memory = _sleepers(engine)
    yield Figure("coroutines", f"{_SLEEPERS:,} that sleep for a second, until all are done", "s", seconds)
    yield Figure("coroutines", f"{_SLEEPERS:,} that sleep: resident memory", "MB", memory)


def _sleepers(engine: Engine) -> tuple[float, float]:
    """Return the seconds from the first start to the last end, by the server's clock, and the worker's memory in MB."""
    work.empty(engine)
    with work.workers(engine, concurrency=_SLEEPERS, program=PROGRAM) as (worker,):
        fill(engine, _SLEEPERS, sleep)
        work.settle(engine)
        before = claims(engine)
        worker.go()
        while claims(engine) < before + _SLEEPERS:
            time.sleep(0.02)
        _, memory = worker.usage()
        return _SLEEPERS / done(engine, _SLEEPERS, claims_before=before), memory


def _transactions_elsewhere(engine: Engine, count: int) -> float:
    """Return the transactions per second of `transactions` in a separate process."""
    work.empty(engine)
    url = engine.url.render_as_string(hide_password=False)
    told = subprocess.run([sys.executable, "-c", _IN_LOOP, url, str(count)], capture_output=True, text=True, check=True)
    return float(told.stdout)


async def transactions(url: str, count: int) -> float:
    """Write what `write_awaited` writes, in a few concurrent transactions. Return the transactions per second."""
    engine = create_async_engine(url, pool_size=_AT_ONCE)
    numbers = iter(range(count))

    async def write_some() -> None:
        for n in numbers:
            async with AsyncSession(engine) as session:
                session.add(Effect(n=n))
                await session.commit()

    began = time.perf_counter()
    await asyncio.gather(*(write_some() for _ in range(_AT_ONCE)))
    took = time.perf_counter() - began
    await engine.dispose()
    return count / took


if __name__ == "__main__":
    work.main()
