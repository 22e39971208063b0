"""Jobs that an application enqueues and changes in a `ShardedSession` are in the shard of its data."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from itertools import product
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Engine, create_engine, event, func, select
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import Session

from sqla_jobs import PARKED, ArgumentsError, ConfigurationError, JobState
from sqla_jobs.testing import assert_enqueued, drain, enqueued, run_job
from sqla_jobs.testing.databases import Databases
from tests.helpers import wait_until
from tests.sharding.tenants import (
    CHOOSERS,
    Base,
    Order,
    Shards,
    bill,
    export,
    index,
    jobs,
    send,
    settle,
    sync,
)

ADA, EVE, BOB = ({"tenant": tenant} for tenant in ("ada", "eve", "bob"))
TENANTS: Any = select(jobs.Job.tenant).order_by(jobs.Job.id)
STATES: Any = select(jobs.Job.state).order_by(jobs.Job.id)


@pytest.fixture(params=["sync", "asyncio"])
def shards(request: pytest.FixtureRequest, sqla_jobs_databases: Databases) -> Iterator[Shards]:
    """Two databases with the tables of the application."""
    with ExitStack() as stack:
        engines: dict[str, Engine] = {}
        for shard in ("eu", "us"):
            engines[shard] = create_engine(stack.enter_context(sqla_jobs_databases.new(Base.metadata)))
            stack.callback(engines[shard].dispose)
        yield Shards(engines, is_async=request.param == "asyncio")


def shard_in(job: Any) -> Any:
    return job._sa_instance_state.identity_token


def test_each_job_is_in_the_shard_that_the_application_chooses(shards: Shards) -> None:
    def work(session: Session) -> None:
        send.options(columns=ADA).enqueue(session, email="a@b.c")
        export.options(columns=BOB).enqueue(session, account=1)
        send.options(columns=EVE).enqueue(session, email="e@b.c")
        later = send.options(columns=BOB, delay=60).enqueue(session, email="b@b.c")
        session.flush()
        assert (shard_in(later), later.state) == ("us", "scheduled")
        sync.options(columns=BOB).enqueue_at_commit(session, account=1)
        sync.options(columns=ADA).enqueue_at_commit(session, account=2)
        session.commit()

    shards.run(work)
    assert shards.read(TENANTS) == {"eu": ["ada", "eve", "ada"], "us": ["bob"] * 3}


def test_a_job_that_would_be_lost_is_refused(shards: Shards) -> None:
    refused = list[bool]()

    def enqueue_late(session: Session) -> None:
        with pytest.raises(ArgumentsError, match="after_commit"):
            send.options(columns=ADA).enqueue(session, email="late@b.c")
        refused.append(True)

    def work(session: Session) -> None:
        send.options(columns=BOB).enqueue(session, email="a@b.c")
        event.listen(session, "after_commit", enqueue_late, once=True)
        session.commit()

    shards.run(work)
    assert refused
    assert shards.read(TENANTS) == {"eu": [], "us": ["bob"]}


def test_a_rollback_leaves_none_in_either(shards: Shards) -> None:
    def work(session: Session) -> None:
        for chosen in (ADA, BOB):
            send.options(columns=chosen).enqueue(session, email="a@b.c")
            bill.options(columns=chosen).enqueue(session, account=1)
            sync.options(columns=chosen).enqueue_at_commit(session, account=1)
            send.options(columns=chosen).enqueue_many(session, [{"email": "a@b.c"}])
        session.rollback()
        session.commit()

    shards.run(work)
    assert shards.read(TENANTS) == {"eu": [], "us": []}


def test_a_savepoint_that_is_rolled_back_leaves_neither_a_job_nor_a_row(shards: Shards) -> None:
    def work(session: Session) -> None:
        session.add(Order(tenant="bob"))
        session.flush()  # one database takes part in the transaction before the savepoint, and the other does not
        for chosen in (ADA, BOB):
            with session.begin_nested() as savepoint:
                send.options(columns=chosen).enqueue(session, email="plain@b.c")
                session.flush()
                savepoint.rollback()
            with session.begin_nested() as savepoint:
                session.add(Order(**chosen))
                session.flush()
                send.options(columns=chosen).enqueue(session, email="a@b.c")
                bill.options(columns=chosen).enqueue(session, account=1)
                with session.begin_nested():
                    send.options(columns=chosen).enqueue(session, email="inner@b.c")
                send.options(columns=chosen).enqueue_many(session, [{"email": "many@b.c"}])
                savepoint.rollback()
        with session.begin_nested():
            session.add(Order(tenant="ada"))
            send.options(columns=ADA).enqueue(session, email="kept@b.c")
        session.commit()

    shards.run(work)
    assert shards.read(TENANTS) == {"eu": ["ada"], "us": []}
    assert shards.read(select(Order.tenant)) == {"eu": ["ada"], "us": ["bob"]}


def test_many_are_inserted_in_one_shard(shards: Shards) -> None:
    def work(session: Session) -> None:
        assert send.options(columns=BOB).enqueue_many(session, ({"email": f"{n}@b.c"} for n in range(3))).inserted == 3
        assert len(export.options(columns=ADA).enqueue_many(session, [{"account": 1}], returning=True)) == 1
        assert send.options(columns=ADA).enqueue_many(session, [{"email": "a@b.c"}, {"email": "b@b.c"}]).inserted == 2
        assert send.options(columns=BOB).enqueue_many(session, []).inserted == 0
        session.commit()

    shards.run(work)
    assert shards.read(TENANTS) == {"eu": ["ada"] * 3, "us": ["bob"] * 3}


def test_a_unique_key_is_taken_in_one_shard(shards: Shards) -> None:
    def work(session: Session) -> None:
        for note in ("first", "second"):
            for chosen, task in product((ADA, EVE, BOB), (bill, index, sync)):
                chosen_task = task.options(columns=chosen)
                enqueue = chosen_task.enqueue_at_commit if task is sync else chosen_task.enqueue
                enqueue(session, account=1, note=note)
            session.commit()

    shards.run(work)
    notes = shards.read(select(jobs.Job.args["note"].astext).order_by(jobs.Job.task))
    assert notes == {"eu": ["first", "second", "second"], "us": ["first", "second", "second"]}


def test_the_job_with_the_key_is_returned_and_follows_a_savepoint(shards: Shards) -> None:
    def work(session: Session) -> None:
        theirs, first = (index.options(columns=chosen).enqueue(session, account=1, note="old") for chosen in (BOB, ADA))
        savepoint = session.begin_nested()
        assert index.options(columns=EVE).enqueue(session, account=1, note="new") is first
        assert (first.args["note"], theirs.args["note"]) == ("new", "old")
        assert index.options(columns=ADA).enqueue_many(session, [{"account": n} for n in (1, 2)]).replaced == 1
        assert first.args == {"account": 1}
        savepoint.rollback()
        assert first.args["note"] == "old"
        assert [shard_in(job) for job in (theirs, first)] == ["us", "eu"]
        session.commit()

    shards.run(work)
    assert shards.read(TENANTS) == {"eu": ["ada"], "us": ["bob"]}


def test_a_batch_is_in_the_shard_of_its_first_job(shards: Shards) -> None:
    def work(session: Session) -> None:
        batch = jobs.batch(session, name="import")
        session.add(order := Order(tenant="bob"))
        settle.options(columns=BOB, batch=batch).enqueue(session, orders=[order])
        first = send.options(columns=BOB, batch=batch).enqueue(session, email="a@b.c")
        assert send.options(columns=BOB, batch=batch).enqueue_many(session, [{"email": "b@b.c"}]).inserted == 1
        after = send.options(columns=BOB, after=[batch, first], if_failed="run").enqueue(session, email="c@b.c")
        assert after.state == JobState.blocked
        assert jobs.counts(session, batch).queued == 3
        with pytest.raises(ArgumentsError, match="'us'"):
            send.options(columns=ADA, batch=batch).enqueue(session, email="d@b.c")
        for wrong in (batch, first):
            with pytest.raises(ArgumentsError, match="'us'"):
                send.options(columns=ADA, after=wrong).enqueue(session, email="d@b.c")
            with pytest.raises(ArgumentsError, match="'us'"):
                send.options(columns=ADA, after=wrong).enqueue_many(session, [{"email": "d@b.c"}])
        session.commit()
        assert jobs.cancel(session, batch).changed == 3
        assert jobs.retry(session, batch).changed == 3
        session.commit()

    shards.run(work)
    assert shards.read(TENANTS) == {"eu": [], "us": ["bob"] * 4}
    assert shards.read(STATES) == {"eu": [], "us": ["queued", "queued", "queued", "blocked"]}
    assert shards.read(select(jobs.Batch.name)) == {"eu": [], "us": ["import"]}
    assert shards.read(select(func.count()).select_from(jobs.Edge)) == {"eu": [0], "us": [2]}


def test_a_job_is_changed_in_its_shard(shards: Shards) -> None:
    """Its id is that of another job in the other shard."""

    def work(session: Session) -> None:
        ours, theirs = (
            send.options(columns=chosen, run_at=PARKED).enqueue(session, email="a@b.c") for chosen in (ADA, BOB)
        )
        session.commit()
        assert (ours.id, shard_in(ours)) == (theirs.id, "eu")
        assert jobs.cancel(session, theirs)
        assert (ours.state, theirs.state) == ("scheduled", "cancelled")
        assert jobs.retry(session, ours)
        assert (ours.state, theirs.state) == ("queued", "cancelled")
        assert not jobs.signal(session, theirs, "go")
        assert jobs.signal(session, ours, "go")
        assert "cancelled" in jobs.why(session, theirs)[0]
        assert "cancelled" not in jobs.why(session, ours)[0]
        assert ours.runs == []
        session.commit()

    shards.run(work)
    assert shards.read(STATES) == {"eu": ["queued"], "us": ["cancelled"]}
    assert shards.read(select(jobs.Signal.name)) == {"eu": ["go"], "us": []}


CALLS: list[Callable[[Session], object]] = [
    lambda session: jobs.cancel(session, 1),
    lambda session: jobs.retry(session, 1),
    lambda session: jobs.signal(session, 1, "go"),
    lambda session: jobs.why(session, 1),
    lambda session: jobs.pause(session, "default"),
    lambda session: jobs.resume(session, "default"),
    lambda session: jobs.set_limit(session, send, running=1),
    lambda session: jobs.clear_limit(session, send),
    lambda session: jobs.delete(session, where=jobs.select(ended_before=timedelta(days=1))).changed,
    lambda session: drain(session, jobs),
    lambda session: run_job(session, send)(email="a@b.c"),
]


def test_what_names_no_shard_is_refused(shards: Shards) -> None:
    def work(session: Session) -> None:
        send.options(columns=ADA).enqueue(session, email="a@b.c")
        session.commit()
        for call in CALLS:
            with pytest.raises(ArgumentsError, match="shard"):
                call(session)
        session.commit()

    shards.run(work)
    assert shards.read(STATES) == {"eu": ["queued"], "us": []}


def test_the_kit_finds_jobs_of_all_shards_and_runs_those_of_one(shards: Shards) -> None:
    def work(session: Session) -> None:
        session.add_all([ours := Order(tenant="ada"), theirs := Order(tenant="bob")])
        session.flush()
        assert ours.id == theirs.id
        alike = send.options(columns=ADA).enqueue(session, email="a@b.c")
        settle.options(columns=ADA, after=alike).enqueue(session, orders=[ours])
        batch = jobs.batch(session)
        first = send.options(columns=BOB, batch=batch).enqueue(session, email="b@b.c")
        chained = settle.options(columns=BOB, after=first).enqueue(session, orders=[theirs])
        assert [job.id for job in (first, chained)] == [job.id for job in enqueued(session, jobs)[:2]]
        assert [job.tenant for job in enqueued(session, jobs)] == ["ada", "ada", "bob", "bob"]
        assert assert_enqueued(session, send.options(batch=batch), email="b@b.c") is first
        assert enqueued(session, settle.options(after=first)) == [chained]
        assert enqueued(session, settle, orders=[theirs]) == [chained]
        with Session(session.connection(bind_arguments={"shard_id": "us"})) as own:
            assert drain(own, jobs).runs == 2
        session.expire_all()
        assert {job.tenant: str(job.state) for job in enqueued(session, jobs)} == {"ada": "blocked", "bob": "succeeded"}
        session.rollback()

    shards.run(work)
    assert shards.read(TENANTS) == {"eu": [], "us": []}


@contextmanager
def listening(engines: dict[str, Engine]) -> Generator[Callable[[dict[str, set[str]]], None]]:
    """Yield a function that waits for these messages in the databases, and asserts that there are no others."""
    with ExitStack() as stack:
        connections: dict[str, psycopg.Connection[Any]] = {}
        for shard, engine in engines.items():
            dsn = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
            connections[shard] = stack.enter_context(psycopg.connect(dsn, autocommit=True))
            connections[shard].execute(sql.SQL("LISTEN {}").format(sql.Identifier(jobs._models.channel)))

        def check(expected: dict[str, set[str]]) -> None:
            found: dict[str, set[str]] = {shard: set() for shard in connections}

            def collect(timeout: float = 0.01) -> dict[str, set[str]]:
                for shard, connection in connections.items():
                    found[shard].update(one.payload for one in connection.notifies(timeout=timeout))
                return found

            with suppress(AssertionError):
                wait_until(lambda: collect() == expected, timeout=10)
            assert collect(0.1) == expected

        yield check


def test_workers_are_notified_in_the_shard_of_the_job(shards: Shards) -> None:
    with listening(shards.engines) as check:

        def work(session: Session) -> None:
            send.options(columns=ADA, queue="ours").enqueue(session, email="a@b.c")
            index.options(columns=BOB, queue="theirs").enqueue(session, account=1)
            sync.options(columns=BOB, queue="last").enqueue_at_commit(session, account=2)
            send.options(columns=ADA, queue="many").enqueue_many(session, [{"email": "a@b.c"}])
            session.commit()

        shards.run(work)
        check({"eu": {"ours", "many"}, "us": {"theirs", "last"}})

        def change(session: Session) -> None:
            session.scalars(select(jobs.Job).where(jobs.Job.queue == "ours")).one().priority = 3
            jobs.cancel(session, session.scalars(select(jobs.Job).where(jobs.Job.queue == "theirs")).one())
            session.commit()

        shards.run(change)
        check({"eu": {""}, "us": {""}})


def test_a_run_works_in_one_database(shards: Shards) -> None:
    with pytest.raises(ConfigurationError, match="ShardedSession"):
        jobs.worker(bind=lambda: ShardedSession(**CHOOSERS, shards=dict(shards.engines)), clock=False).start()
