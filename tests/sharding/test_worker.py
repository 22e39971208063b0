"""One worker in this process that serves several databases."""

from __future__ import annotations

import asyncio
from copy import copy
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, select, text
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import ConfigurationError
from tests.counting import states
from tests.helpers import wait_until
from tests.proxy import Proxy
from tests.sharding import shop
from tests.sharding.shop import Effect, jobs, meter


@pytest.fixture(autouse=True)
def measured_anew() -> None:
    shop.entered.clear()
    meter.reset()


def enqueue(engine: Engine, number: int, *, seconds: float = 0.0) -> None:
    with Session(engine) as session:
        for _ in range(number):
            shop.nap.enqueue(session, seconds=seconds)
        session.commit()


def effects(engine: Engine) -> list[tuple[int, str]]:
    with Session(engine) as session:
        return [(n, shard) for n, shard in session.execute(select(Effect.n, Effect.shard).order_by(Effect.n))]


def test_each_job_has_its_effect_in_its_own_database(engines: dict[str, Engine]) -> None:
    for name, engine in engines.items():
        with Session(engine) as session:
            for n in range(5):
                shop.write.enqueue(session, n=n)
            shop.chain.enqueue(session, n=5)
            if name == "us":
                shop.write_async.enqueue(session, n=6)
            session.commit()
    with jobs.worker({"default": 3}, bind={**engines, "us": sessionmaker(engines["us"])}) as worker:
        wait_until(lambda: worker.runs == 22)
        with Session(engines["as"]) as session:
            shop.write.enqueue(session, n=7)
            session.commit()
        wait_until(lambda: worker.runs == 23)
    for name, engine in engines.items():
        extra = {"us": [6], "as": [7]}.get(name, [])
        assert effects(engine) == [(n, name) for n in [*range(6), *extra]]
        assert states(engine) == {"succeeded": 7 + len(extra)}
    assert shop.entered == ["entered", "left"]


def test_draining_runs_the_jobs_of_all_databases(engines: dict[str, Engine]) -> None:
    for engine in engines.values():
        with Session(engine) as session:
            shop.chain.enqueue(session, n=1)
            session.commit()
    assert jobs.worker(bind=engines).drain() == 6
    assert [states(engine) for engine in engines.values()] == [{"succeeded": 2}] * 3


def test_draining_runs_jobs_that_jobs_of_other_databases_enqueue(
    engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shop, "engines", engines)
    with Session(engines["eu"]) as session:
        shop.cross.enqueue(session, left=150)
        session.commit()
    assert jobs.worker(bind=engines).drain() == 151


def test_the_databases_share_the_slots(engines: dict[str, Engine]) -> None:
    for engine in engines.values():
        enqueue(engine, 20, seconds=0.02)
    with jobs.worker({"default": 4}, bind=engines) as worker:
        wait_until(lambda: worker.runs == 60)
        assert meter.most == 4
        meter.reset()
        enqueue(engines["us"], 20, seconds=0.02)
        wait_until(lambda: worker.runs == 80)
        assert meter.most == 4, "one database alone has all slots"


@pytest.mark.parametrize("slots", [1, 4])
def test_a_database_with_few_jobs_need_not_wait_for_one_with_many(engines: dict[str, Engine], slots: int) -> None:
    seconds = 0.01 * slots  # a hundred runs a second: few of them pass during a claim
    enqueue(engines["eu"], 400, seconds=seconds)
    with jobs.worker({"default": slots}, bind=engines) as worker:
        wait_until(lambda: worker.runs > 10)
        enqueue(engines["us"], 10, seconds=seconds)
        wait_until(lambda: meter.shards.count("us") == 10)
        first = meter.shards.index("us")
        last = len(meter.shards) - meter.shards[::-1].index("us")
        assert last - first < 60, "the database has half of the slots while it has jobs"
        wait_until(lambda: worker.runs == 410)


@pytest.mark.slow
def test_databases_with_long_jobs_take_turns(engines: dict[str, Engine]) -> None:
    for engine in engines.values():
        enqueue(engine, 6, seconds=0.6)
    with jobs.worker({"default": 1}, bind=engines) as worker:
        wait_until(lambda: worker.runs >= 9)
        counts = [meter.shards[:9].count(name) for name in engines]
        assert min(counts) >= 1, meter.shards


def test_limits_are_those_of_each_database(engines: dict[str, Engine]) -> None:
    for engine in engines.values():
        with Session(engine) as session:
            for _ in range(6):
                shop.alone.enqueue(session, seconds=0.01)
            session.commit()
    with jobs.worker({"default": 6}, bind=engines) as worker:
        wait_until(lambda: worker.runs == 18)
    assert 1 <= meter.most <= 3


def test_a_database_that_is_away_delays_only_its_own_jobs(
    engines: dict[str, Engine], caplog: pytest.LogCaptureFixture
) -> None:
    address = engines["us"].url
    enqueue(engines["us"], 3)
    enqueue(engines["eu"], 3)
    with Proxy(("127.0.0.1", 1)) as proxy:
        away = create_engine(address.set(host="127.0.0.1", port=proxy.port))
        with jobs.worker(bind={"us": away, "eu": engines["eu"]}, lease=3, heartbeat=0.5) as worker:
            wait_until(lambda: worker.runs == 3)
            assert "database 'us'" in caplog.text
            assert states(engines["us"]) == {"queued": 3}
            proxy.target = (str(address.host), int(address.port or 5432))
            wait_until(lambda: states(engines["us"]) == {"succeeded": 3})
            proxy.stall()
            enqueue(engines["eu"], 50)
            wait_until(lambda: states(engines["eu"]) == {"succeeded": 53}, timeout=5)
            proxy.go_on()
            enqueue(engines["us"], 5)
            wait_until(lambda: states(engines["us"]) == {"succeeded": 8})
        away.dispose()


def test_the_next_database_finds_the_worker_contexts_entered(
    engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = engines["us"].url
    with Proxy((str(address.host), int(address.port or 5432))) as proxy:

        def lose_it() -> None:
            proxy.target = ("127.0.0.1", 1)
            proxy.cut()

        monkeypatch.setattr(shop, "on_entering", lose_it)
        lost = create_engine(address.set(host="127.0.0.1", port=proxy.port))
        enqueue(engines["eu"], 1)
        with jobs.worker(bind={"us": lost, "eu": engines["eu"]}) as worker:
            wait_until(lambda: worker.runs == 1)
        lost.dispose()
    assert shop.entered == ["entered", "left"]


def test_a_worker_claims_nothing_while_it_stops_connecting(engines: dict[str, Engine]) -> None:
    address = engines["us"].url
    with Proxy(("127.0.0.1", 1)) as proxy:
        away = create_engine(address.set(host="127.0.0.1", port=proxy.port))
        with jobs.worker({"default": 1}, bind={"us": away, "eu": engines["eu"]}, lease=9, heartbeat=1) as worker:
            proxy.stall()
            wait_until(lambda: proxy.clients)
            enqueue(engines["eu"], 40, seconds=0.05)
            wait_until(lambda: worker.runs > 0)
            before = worker.runs
        assert worker.runs < before + 10, "it connects for up to three seconds"
        away.dispose()


def test_a_worker_inside_an_event_loop_serves_all_databases(engines: dict[str, Engine]) -> None:
    async def serve() -> None:
        for engine in engines.values():
            with Session(engine) as session:
                shop.write_async.enqueue(session, n=1)
                session.commit()
        async with jobs.worker(bind=engines) as worker:
            while worker.runs < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(serve(), 20))
    assert [effects(engine) for engine in engines.values()] == [[(1, name)] for name in engines]


def test_a_database_has_a_plain_name(engines: dict[str, Engine]) -> None:
    for binds in ({}, {"a/b": engines["eu"]}, {"": engines["eu"]}):
        with pytest.raises(ConfigurationError, match="name"):
            jobs.worker(bind=binds)


def test_a_database_has_one_name(engines: dict[str, Engine]) -> None:
    with pytest.raises(ConfigurationError, match=r"\[us\].*'eu'"):
        jobs.worker(bind={"eu": engines["eu"], "us": engines["eu"]}).start()
    elsewhere = create_engine(engines["eu"].url, connect_args={"options": "-c search_path=elsewhere"})
    with engines["eu"].begin() as connection:
        connection.execute(text("CREATE SCHEMA elsewhere"))
    shop.Base.metadata.create_all(elsewhere)
    both = {"eu": engines["eu"], "us": elsewhere}
    for engine in both.values():
        enqueue(engine, 1)
    with jobs.worker(bind=both):
        wait_until(lambda: [states(engine) for engine in both.values()] == [{"succeeded": 1}] * 2)
    elsewhere.dispose()


def test_the_clock_fires_each_schedule_in_each_database(engines: dict[str, Engine]) -> None:
    for engine in engines.values():
        with Session(engine) as session:
            session.add(jobs.Schedule(name="often", task=shop.nap.name, cron="* * * * * *"))
            session.commit()
    with jobs.clock(bind=engines):
        wait_until(lambda: all(states(engine) for engine in engines.values()))


def test_a_bind_that_is_refused_leaves_the_earlier_one(engines: dict[str, Engine]) -> None:
    bound = copy(jobs)
    bound.bind(engines, read_bind={"eu": engines["eu"]})
    refused: list[dict[str, Any]] = [
        {"bind": "postgresql://localhost"},
        {"bind": {"eu": "postgresql://localhost"}},
        {"bind": engines, "read_bind": engines["eu"]},
        {"bind": engines, "read_bind": {"uk": engines["eu"]}},
        {"bind": engines["eu"], "read_bind": {"eu": engines["eu"]}},
    ]
    for options in refused:
        with pytest.raises(ConfigurationError):
            bound.bind(**options)
        assert bound.shards == ("eu", "us", "as")
        assert bound.worker().drain() == 0


def test_a_read_only_database_delays_only_its_own_jobs(
    engines: dict[str, Engine], caplog: pytest.LogCaptureFixture
) -> None:
    """As a standby is, and the old primary after a failover."""
    eu = create_engine(engines["eu"].url, poolclass=NullPool)  # each connection has the present setting
    served = {"eu": eu, "us": engines["us"]}
    for engine in served.values():
        enqueue(engine, 3)
    with engines["as"].connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
        setting = f'ALTER DATABASE "{eu.url.database}" SET default_transaction_read_only'
        admin.execute(text(f"{setting} = on"))
        with jobs.clock(bind=served), jobs.worker(bind=served) as worker:
            wait_until(lambda: worker.runs == 3)
            wait_until(lambda: "database 'eu' failed" in caplog.text)
            assert "read-only" in caplog.text
            admin.execute(text(f"{setting} = off"))
            wait_until(lambda: worker.runs == 6)


def test_a_database_that_cannot_be_served_is_named(engines: dict[str, Engine]) -> None:
    with engines["us"].begin() as connection:
        connection.execute(text("COMMENT ON TABLE sqla_jobs IS 'sqla_jobs schema 1'"))
    for service in (jobs.worker(bind=engines), jobs.clock(bind=engines)):
        with pytest.raises(ConfigurationError, match=r"\[us\]"):
            service.start()
