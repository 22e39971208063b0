"""What can happen between two statements of claims behind limits, one test for each way in which they might overshoot.

The names F1 to F11 are those of the traces of the bounded model by which most of them were found.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, func, select, text
from sqlalchemy.orm import Session

from sqla_jobs import Unique
from sqla_jobs.actions.audit import Changing
from sqla_jobs.actions.jobs import Alter
from sqla_jobs.actions.selection import Selection
from sqla_jobs.queries import Claimed
from sqla_jobs.queries.backfill import Gated
from tests import limited_shop as shop
from tests.counting import states
from tests.helpers import wait_until
from tests.limited_shop import jobs
from tests.limits.attempts import enqueue
from tests.limits.claims import Claims, as_worker, beside, claim_in, lock_held, waiting_for_locks

pytestmark = pytest.mark.slow


@pytest.fixture
def claims(database: Engine) -> Iterator[Claims]:
    with as_worker(database, jobs) as claims:
        yield claims


def numbered(count: int, **also: Any) -> list[dict[str, Any]]:
    return [{"n": n, **also} for n in range(count)]


def arguments(claimed: list[Claimed], engine: Engine) -> list[int]:
    """The `n` of each."""
    with Session(engine) as session:
        return [session.get_one(jobs.Job, job.job_id).args["n"] for job in claimed]


def running(engine: Engine) -> int:
    return states(engine)["running"]


# --- lock, then look


def test_a_claim_waits_for_another_and_counts_what_that_one_took(database: Engine, claims: Claims) -> None:
    enqueue(database, shop.pair, numbered(6))
    with lock_held(database, jobs) as other:
        assert len(claim_in(other, claims, 1)) == 1
        with beside(claims.limited) as claim:
            wait_until(lambda: waiting_for_locks(database) == 1)
            assert len(claim_in(other, claims, 1)) == 1
            other.commit()
    assert claim.result() == []
    assert running(database) == 2


@pytest.mark.parametrize(
    ("level", "since"), [("serializable", "before the worker starts"), ("repeatable read", "while it works")]
)
def test_no_overshoot_whatever_the_databases_default_isolation_is(database: Engine, level: str, since: str) -> None:
    """Its own transaction says READ COMMITTED: under another level the count is as old as the wait for the lock."""
    enqueue(database, shop.pair, numbered(6))
    if since == "before the worker starts":
        set_default(database, "default_transaction_isolation", level)
    with as_worker(database, jobs) as claims:
        if since == "while it works":
            set_default(database, "default_transaction_isolation", level)
            claims.engine.dispose()  # a connection that is made anew
        with lock_held(database, jobs) as other, beside(claims.limited) as claim:
            wait_until(lambda: waiting_for_locks(database) == 1)
            assert len(claim_in(other, claims, 2)) == 2
            other.commit()
        assert claim.result() == []
    assert running(database) == 2


def set_default(engine: Engine, name: str, value: str) -> None:
    """From the next connection on."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"ALTER DATABASE {engine.url.database} SET {name} = '{value}'"))
    engine.dispose()


# --- crashes: see test_crashes


# --- ordered keys


def test_a_locked_head_of_an_ordered_key_blocks_and_is_not_skipped(database: Engine, claims: Claims) -> None:
    enqueue(database, shop.ordered, numbered(3, account=1))
    enqueue(database, shop.ordered, [{"n": 10, "account": 2}])
    with Session(database) as user:
        user.execute(text("SELECT 1 FROM sqla_jobs WHERE args->>'n' = '0' FOR UPDATE"))
        assert arguments(claims.limited(), database) == [10]
        assert claims.limited() == []
    assert arguments(claims.limited(), database) == [0]


def test_what_has_begun_is_the_head_also_where_it_was_given_back(database: Engine, claims: Claims) -> None:
    """Rescued or released it is queued again, at the end of its queue."""
    enqueue(database, shop.ordered, numbered(3, account=1))
    (first,) = claims.limited()
    with database.begin() as connection:
        connection.execute(text("DELETE FROM sqla_processes"))
        claims.queries.rescue(connection)
    with as_worker(database, jobs) as other:
        claimed = other.limited()
        assert [job.job_id for job in claimed] == [first.job_id]
        assert other.limited() == []
        other.end(*claimed)
        assert arguments(other.limited(), database) == [1]


@pytest.mark.parametrize("change", ["move many", "replace"])
def test_a_job_keeps_its_place_in_its_key_whatever_its_queue_and_priority_become(
    database: Engine, claims: Claims, change: str
) -> None:
    policy = Unique(on_conflict="replace", max_delay=0)
    with Session(database) as session:
        first = shop.ordered.options(unique_key="first", unique=policy).enqueue(session, account=1, n=0)
        session.commit()
        enqueue(database, shop.ordered, [{"account": 1, "n": n} for n in (1, 2)])
        if change == "move many":
            it = nullcontext(Changing(session, jobs._models, jobs.tasks))
            (done,) = Alter("other", 9).in_batches(lambda: it, Selection(ids=(first.id,)))
            assert done.changed == 1
        else:
            shop.ordered.options(unique_key="first", unique=policy, priority=9).enqueue(session, account=1, n=0)
        session.commit()
        queue, priority = first.queue, first.priority
    assert (queue, priority) == ("default" if change == "replace" else "other", 9)
    (head,) = claims.limited(queue=queue)
    assert arguments([head], database) == [0]
    claims.end(head)
    assert one_by_one(database, claims) == [1, 2]


def test_a_delayed_job_of_a_key_gets_its_place_when_it_becomes_due(database: Engine, claims: Claims) -> None:
    with Session(database) as session:
        shop.ordered.options(delay=3600).enqueue(session, account=1, n=0)
        session.commit()
        enqueue(database, shop.ordered, [{"account": 1, "n": n} for n in (1, 2)])
        session.execute(text("UPDATE sqla_jobs SET run_at = now() WHERE state = 'scheduled'"))
        session.commit()
    claims.promote()
    assert one_by_one(database, claims) == [1, 2, 0]


def test_an_ended_job_of_a_key_that_a_person_retries_goes_next_and_not_beside(database: Engine, claims: Claims) -> None:
    """F8f, F8g."""
    enqueue(database, shop.ordered, numbered(3, account=1))
    (first,) = claims.limited()
    claims.end(first)
    (second,) = claims.limited()
    with Session(database) as session:
        assert jobs.retry(session, first.job_id)
        session.commit()
    assert claims.limited() == []
    claims.end(second)
    again = claims.limited()
    assert [job.job_id for job in again] == [first.job_id]
    claims.end(*again)
    assert arguments(claims.limited(), database) == [2]


def test_a_job_that_waits_for_its_retry_while_a_person_retries_another_keeps_the_key(
    database: Engine, claims: Claims
) -> None:
    enqueue(database, shop.ordered, numbered(3, account=1))
    (first,) = claims.limited()
    claims.end(first)
    (second,) = claims.limited()
    claims.fail(second, again_in=3600)
    with Session(database) as session:
        assert jobs.retry(session, first.job_id)
        session.commit()
    assert claims.limited() == []


# --- rates


def test_a_start_counts_from_the_moment_after_the_lock(database: Engine, claims: Claims) -> None:
    """Not from when the statement was sent: the window would be over for those that waited long."""
    enqueue(database, shop.rated, numbered(6))
    with lock_held(database, jobs) as other, beside(lambda: claims.limited(2)) as claim:
        wait_until(lambda: waiting_for_locks(database) == 1)
        other.execute(text("SELECT pg_sleep(0.5)"))
        free_at = other.scalar(text("SELECT clock_timestamp()"))
        other.rollback()
    with Session(database) as session:
        first = session.scalar(select(func.min(jobs.Job.started_at)))
        logged = session.scalar(select(func.min(jobs.Start.started_at)))
    assert len(claim.result()) == 2
    assert free_at <= first == logged


def test_a_start_that_does_not_happen_does_not_count(database: Engine, claims: Claims) -> None:
    """A job that is changed between a claim's snapshot and its lock of the job is left to the next claim."""
    replacing = shop.rated.options(unique_key="one", unique=Unique(on_conflict="replace", max_delay=0))
    with Session(database) as session:
        jobs.set_limit(session, shop.rated, rate=2, per=3600)
        session.commit()
        enqueue(database, shop.rated, numbered(1))
        assert len(claims.limited()) == 1  # where there is a start, the time is read before jobs are locked
        replacing.enqueue(session, n=0)
        session.commit()
        with time_held(claims) as held, beside(claims.limited) as claim:
            wait_until(lambda: waiting_for_locks(database) == 1)
            replacing.enqueue(session, n=1)
            session.commit()
            held.rollback()
    claimed = claim.result() or claims.limited()
    assert arguments(claimed, database) == [1]


@contextmanager
def time_held(claims: Claims) -> Generator[Session]:
    """Claims stand still where they read the time, until this session ends its transaction."""

    def hold(connection: Any, *_: object) -> None:
        connection.execute("SET search_path = held, pg_catalog, public")

    with Session(claims.engine.execution_options(isolation_level="READ COMMITTED")) as session:
        session.execute(
            text(
                """
                CREATE SCHEMA held;
                CREATE FUNCTION held.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN
                    PERFORM pg_advisory_xact_lock_shared(17);
                    RETURN pg_catalog.clock_timestamp();
                END $$;
                """
            )
        )
        session.commit()
        session.execute(text("SELECT pg_advisory_xact_lock(17)"))
        event.listen(claims.engine, "checkout", hold)
        try:
            yield session
        finally:
            event.remove(claims.engine, "checkout", hold)
    claims.engine.dispose()


# --- limits that change, and jobs without their gates


def test_a_job_that_runs_when_its_task_is_limited_holds_a_place(database: Engine, claims: Claims) -> None:
    """Its row is given the gate as soon as nobody locks it."""
    enqueue(database, shop.plain, numbered(4))
    claims.plain(2)
    with Session(database) as session, Session(database) as user:
        user.execute(text("SELECT 1 FROM sqla_jobs WHERE state = 'running' FOR UPDATE"))
        jobs.set_limit(session, shop.plain, running=2)
        session.commit()
        claims.repair()
        user.rollback()
        claims.repair()
    assert claims.limited() == []


def test_a_plain_claim_under_way_while_a_limit_is_set_may_slip_through_once(database: Engine, claims: Claims) -> None:
    """F7e, as documented: its snapshot is older than the limit. From its commit on it counts."""
    enqueue(database, shop.plain, numbered(4))
    with database.connect() as connection:
        slow = claims.queries.claim(connection, claims.process_id, {"default": 1}, claims.tasks)
        assert len(slow) == 1
        with Session(database) as session:
            jobs.set_limit(session, shop.plain, running=1)
            session.commit()
        claims.repair()
        early = claims.limited()
        assert len(early) == 1
        connection.commit()
    claims.end(*early)
    claims.repair()
    assert claims.limited() == [], "what slipped through holds the place"
    claims.end(*slow)
    assert len(claims.limited()) == 1


@pytest.mark.parametrize("task", [shop.keyed, shop.ordered], ids=["keyed", "ordered"])
def test_a_job_gets_no_gates_for_arguments_that_it_no_longer_has(
    database: Engine, claims: Claims, monkeypatch: pytest.MonkeyPatch, task: Any
) -> None:
    """Such as a schedule's job that is replaced while a worker makes its gates: it would wait for jobs of another."""
    replacing = task.options(unique_key="one", unique=Unique(on_conflict="replace", max_delay=0))
    also = {"n": 0} if task is shop.ordered else {}
    give = claims.queries.give_gates
    with Session(database) as session:
        replacing.enqueue(session, account=1, **also)
        session.execute(text("UPDATE sqla_jobs SET gates = NULL, ordered_by = NULL"))
        session.commit()

        def give_late(connection: Connection, gated: Sequence[Gated]) -> int:
            replacing.enqueue(session, account=2, **also)
            session.commit()
            return give(connection, gated)

        with monkeypatch.context() as patched:
            patched.setattr(claims.queries, "give_gates", give_late)
            claims.repair()
        claims.repair()
        (job,) = session.scalars(select(jobs.Job))
        assert (job.args["account"], [gate.partition("=")[2] for gate in job.gates or ()]) == (2, ["2"])


def one_by_one(engine: Engine, claims: Claims) -> list[int]:
    """The `n` of all that waits, in the order in which it starts, until nothing more is found."""
    started: list[int] = []
    while claimed := claims.limited(1):
        started += arguments(claimed, engine)
        claims.end(*claimed)
    return started
