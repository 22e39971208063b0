"""Workers and clocks in this process, one for each of several databases."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqla_jobs import ConfigurationError, Jobs
from tests.counting import states
from tests.helpers import wait_until
from tests.sharding import shop
from tests.sharding.shop import Effect, jobs


def enqueue(engine: Engine, number: int, *, seconds: float = 0.0) -> None:
    with Session(engine) as session:
        for _ in range(number):
            shop.nap.enqueue(session, seconds=seconds)
        session.commit()


def effects(engine: Engine) -> list[tuple[int, str]]:
    with Session(engine) as session:
        return [(n, shard) for n, shard in session.execute(select(Effect.n, Effect.shard).order_by(Effect.n))]


def test_each_job_has_its_effect_in_its_own_database(
    bound: Jobs[shop.TenantJob], engines: dict[str, Engine], caplog: pytest.LogCaptureFixture
) -> None:
    for name, engine in engines.items():
        with Session(engine) as session:
            for n in range(5):
                shop.write.enqueue(session, n=n)
            shop.chain.enqueue(session, n=5)
            if name == "us":
                shop.write_async.enqueue(session, n=6)
                shop.fail.enqueue(session)
            session.commit()
    with ExitStack() as started:
        for name in engines:
            started.enter_context(bound.worker({"default": 3}, shard=name, clock=False))
        for name, engine in engines.items():
            extra = {"us": {"failed": 1, "succeeded": 8}}.get(name, {"succeeded": 7})
            wait_until(lambda engine=engine, extra=extra: states(engine) == extra)  # type: ignore[misc]
            assert effects(engine) == [(n, name) for n in range(7 if name == "us" else 6)]
    [failed] = [record for record in caplog.records if "fail" in record.getMessage() and record.name == "sqla_jobs.run"]
    assert vars(failed)["shard"] == "us"


def test_workers_of_several_databases_run_in_one_event_loop(
    bound: Jobs[shop.TenantJob], engines: dict[str, Engine]
) -> None:
    async def serve() -> None:
        for engine in engines.values():
            with Session(engine) as session:
                shop.write_async.enqueue(session, n=1)
                session.commit()
        async with AsyncExitStack() as started:
            workers = [await started.enter_async_context(bound.worker(shard=name, clock=False)) for name in engines]
            while [worker.runs for worker in workers] != [1, 1, 1]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(serve(), 20))
    assert [effects(engine) for engine in engines.values()] == [[(1, name)] for name in engines]


def test_a_worker_or_clock_has_one_database(bound: Jobs[shop.TenantJob]) -> None:
    for make in (bound.worker, bound.clock):
        with pytest.raises(ConfigurationError, match=r"eu, us, as.*shard=name"):
            make()
        with pytest.raises(ConfigurationError, match="'uk'"):
            make(shard="uk")


def test_a_clock_fires_the_schedules_of_its_database(bound: Jobs[shop.TenantJob], engines: dict[str, Engine]) -> None:
    for engine in engines.values():
        with Session(engine) as session:
            session.add(jobs.Schedule(name="often", task=shop.nap.name, cron="* * * * * *"))
            session.commit()
    with bound.clock(shard="us"):
        wait_until(lambda: states(engines["us"]))
    assert states(engines["eu"]) == {}
