"""Limits as a user sees them: workers, real jobs, and what their runs say afterwards."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, func, select, text
from sqlalchemy.orm import Session

from sqla_jobs import ArgumentsError
from sqla_jobs.queries.expressions import Tables
from sqla_jobs.queries.limit_lock import LockLimits
from tests import limited_shop as shop
from tests.counting import states
from tests.helpers import wait_until
from tests.limited_shop import jobs
from tests.limits.attempts import enqueue, left, most_at_once, most_in

pytestmark = pytest.mark.slow
NUMBERS = [{"n": n, "seconds": 0.1} for n in range(12)]


def run_all(engine: Engine, *, workers: int = 2, concurrency: int = 4) -> None:
    made = [jobs.worker({"default": concurrency}, heartbeat=0.5, lease=5, clock=False) for _ in range(workers)]
    for worker in made:
        worker.start()
    try:
        wait_until(lambda: left(engine) == 0, timeout=60)
    finally:
        for worker in made:
            worker.stop()


def test_tasks_share_a_limit_by_its_name_and_all_limits_must_admit(database: Engine) -> None:
    enqueue(database, shop.charge, NUMBERS)
    enqueue(database, shop.refund, ({"tenant": "a", "n": n % 2, "seconds": 0.1} for n in range(8)))
    run_all(database)
    assert most_at_once(database, "charge", "refund") == {None: 3}
    assert most_at_once(database, "refund", by=lambda args: args["n"]) == {0: 1, 1: 1}


def test_no_more_jobs_start_in_a_window_than_the_rate_and_all_of_it_is_used(database: Engine) -> None:
    enqueue(database, shop.rated, ({"n": n} for n in range(11)))
    run_all(database)
    assert most_in(database, 1.0, "rated") == 5


def test_a_rate_goes_on_at_its_rate_after_the_servers_clock_was_set_back(database: Engine) -> None:
    """To the clock, the starts so far lie an hour ahead then. These jobs show when they really started."""
    enqueue(database, shop.rated, ({"n": n} for n in range(16)))
    with jobs.worker({"default": 8}, clock=False), Session(database) as session:
        wait_until(lambda: states(database)["succeeded"] >= 6)
        LockLimits(Tables(jobs._models)).run(session)
        session.execute(text("UPDATE sqla_starts SET started_at = started_at + interval '1 hour'"))
        session.commit()
        wait_until(lambda: left(database) == 0, timeout=20)
    assert most_in(database, 1.0, "rated") == 5


def test_jobs_of_an_ordered_key_start_in_their_order_also_across_retries(database: Engine) -> None:
    enqueue(database, shop.ordered, ({"account": n % 2, "n": n, "failures": n % 3 == 0} for n in range(8)))
    with Session(database) as session:
        session.execute(text("UPDATE sqla_jobs SET priority = -5 WHERE args->>'n' = '7'"))
        session.commit()
    shop_retries_at_once(database)
    run_all(database)
    with Session(database) as session:
        for account in (0, 1):
            done = session.scalars(
                select(jobs.Run.result)
                .join(jobs.Job, jobs.Job.id == jobs.Run.job_id)
                .where(jobs.Run.outcome == "succeeded", jobs.Job.args["account"].as_integer() == account)
                .order_by(jobs.Run.started_at)
            ).all()
            assert done == [n for n in range(8) if n % 2 == account]
    assert most_at_once(database, "ordered", by=lambda args: args["account"]) == {0: 1, 1: 1}


def shop_retries_at_once(engine: Engine) -> None:
    """Retries wait for a moment instead of some seconds: the server brings them forward."""
    brought = "NEW.run_at := least(NEW.run_at, clock_timestamp() + interval '0.2 s'); RETURN NEW;"
    with Session(engine) as session:
        session.execute(text(f"CREATE FUNCTION soon() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {brought} END $$"))
        when = "WHEN (NEW.state = 'scheduled')"
        session.execute(
            text(f"CREATE TRIGGER soon BEFORE UPDATE ON sqla_jobs FOR EACH ROW {when} EXECUTE FUNCTION soon()")
        )
        session.commit()


def test_a_worker_that_was_taken_for_dead_interrupts_what_it_runs_behind_limits(database: Engine) -> None:
    """So it overlaps only shortly with the worker that starts the next job."""
    with jobs.worker({"default": 1}, heartbeat=0.2, lease=2, clock=False), Session(database) as session:
        shop.busy.enqueue(session, seconds=60)
        session.commit()
        wait_until(lambda: states(database) == {"running": 1})
        shop.busy.enqueue(session, seconds=0)
        session.execute(text("DELETE FROM sqla_processes"))
        session.commit()
        wait_until(lambda: states(database) == {"failed": 1, "succeeded": 1})
        assert set(session.scalars(select(jobs.Run.outcome))) == {"lost", "succeeded"}


def test_an_operator_limits_a_task_that_declares_nothing_and_takes_that_back(database: Engine) -> None:
    enqueue(database, shop.plain, NUMBERS)
    with Session(database) as session:
        jobs.set_limit(session, shop.plain, running=0)
        session.commit()
        with jobs.worker({"default": 4}, clock=False):
            enqueue(database, shop.pair, NUMBERS[:4])
            wait_until(lambda: states(database, "pair") == {"succeeded": 4})
            assert states(database, "plain") == {"queued": 12}
            jobs.set_limit(session, "plain", running=1)
            session.commit()
            wait_until(lambda: states(database, "plain") == {"succeeded": 12})
            assert most_at_once(database, "plain") == {None: 1}
            assert jobs.clear_limit(session, shop.plain)
            assert not jobs.clear_limit(session, shop.plain)
            session.commit()
            enqueue(database, shop.plain, NUMBERS)
            wait_until(lambda: left(database) == 0)
    assert most_at_once(database, "plain")[None] > 1


def test_a_queue_is_limited_over_all_workers(database: Engine) -> None:
    with Session(database) as session:
        jobs.set_limit(session, queue="default", running=2)
        session.commit()
    enqueue(database, shop.plain, NUMBERS)
    enqueue(database, shop.keyed, ({"account": n, "seconds": 0.02} for n in range(12)))
    run_all(database)
    assert most_at_once(database, "plain", "keyed") == {None: 2}


def test_others_spend_from_the_same_rate(database: Engine) -> None:
    with Session(database) as session:
        jobs.set_limit(session, "stripe", rate=5, per=60)
        session.commit()
    with jobs.worker({"default": 2}, clock=False):  # it makes rows of what code declares
        assert jobs.spend("stripe", 3)
        assert not jobs.spend("stripe", 3)
        enqueue(database, shop.charge, NUMBERS)
        wait_until(lambda: states(database)["succeeded"] == 2)
        assert not jobs.spend("stripe")
    assert states(database)["queued"] == 10


def test_a_deploy_changes_a_number_unless_an_operator_has_set_it(database: Engine) -> None:
    def numbers() -> dict[str, int | None]:
        with Session(database) as session:
            return {limit.gate: limit.running for limit in session.scalars(select(jobs.Limit))}

    with jobs.worker(clock=False):
        assert numbers()["#pair"] == 2
    with Session(database) as session:
        earlier = "UPDATE sqla_limits SET running = 7, declared = jsonb_set(declared, '{running}', '7')"
        session.execute(text(f"{earlier} WHERE gate LIKE '#%'"))
        jobs.set_limit(session, shop.keyed, running=5)
        session.commit()
    with jobs.worker(clock=False):
        assert numbers()["#pair"] == 2
        assert numbers()["#keyed="] == 5
    with Session(database) as session:
        jobs.clear_limit(session, shop.keyed)
        session.commit()
    assert numbers()["#keyed="] == 1


@pytest.mark.parametrize(
    ("which", "numbers"),
    [
        (["nobody"], {"running": 1}),
        (["narrow"], {"rate": 1, "per": 1}),
        ([shop.pair], {}),
        ([shop.pair], {"rate": 5}),
        ([shop.pair], {"key": 1, "running": 1}),
        ([shop.keyed], {"key": uuid.uuid4(), "running": 1}),
        ([shop.ordered], {"running": 2}),
        ([], {"running": 2}),
        ([], {"queue": "a", "rate": 2, "per": 1}),
    ],
)
def test_a_limit_that_cannot_be_set_is_refused(session: Session, which: list[Any], numbers: dict[str, Any]) -> None:
    with pytest.raises(ArgumentsError):
        jobs.set_limit(session, *which, **numbers)
    assert session.scalar(select(func.count()).select_from(jobs.Limit)) == 0


def test_an_idle_worker_beside_more_blocked_keys_than_one_look_gets_around_rests(
    database: Engine, server_url: str
) -> None:
    """A claim is one message, and one transaction. The server's own count here, too, so one calm window is enough."""
    with Session(database) as session:
        jobs.set_limit(session, shop.keyed, running=0)
        session.commit()
    enqueue(database, shop.keyed, ({"account": n} for n in range(1000)))
    beside, seconds = create_engine(server_url, isolation_level="AUTOCOMMIT"), 3.0
    with jobs.worker({"default": 4}, clock=False), beside.connect() as connection:

        def sent() -> int:
            before, since = _transactions(connection, database), time.monotonic()
            wait_until(lambda: time.monotonic() > since + seconds)
            return _transactions(connection, database) - before

        wait_until(lambda: sent() <= seconds * 7, timeout=60, message="it does not rest")
    beside.dispose()


def _transactions(beside: Connection, engine: Engine) -> int:
    ended = text("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = :name")
    return int(beside.execute(ended, {"name": engine.url.database}).scalar_one())
