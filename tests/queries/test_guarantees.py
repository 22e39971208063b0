"""The statements of a job's life, raced on real connections and walked through at random."""

from __future__ import annotations

import threading
import uuid
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, Engine, func, insert, select, text, update
from sqlalchemy.orm import Session

from sqla_jobs import JobState
from sqla_jobs.queries import Claimed, Queries, RunEnd, processes
from sqla_jobs.queries.values import Rescued
from sqla_jobs.rules.outcomes import Failure, Outcome
from tests import shop
from tests.helpers import WAITING_HERE, wait_until
from tests.shop import jobs

pytestmark = pytest.mark.usefixtures("database")
QUERIES = Queries(jobs._models)
WHY = Failure("Error", "because")


def a_process(connection: Connection) -> uuid.UUID:
    return processes.register(connection, jobs._models, kind="worker", queues={}, lease=30)


def last_heartbeat(connection: Connection, process_id: uuid.UUID) -> dict[uuid.UUID, int]:
    heartbeat, _ = QUERIES.heartbeats(connection)[process_id]
    return {process_id: heartbeat}


def claim(connection: Connection, process_id: uuid.UUID, limit: int) -> list[Claimed]:
    return QUERIES.claim(connection, process_id, {"default": limit}, list(jobs.tasks))


class JobLife(RuleBasedStateMachine):
    """Jobs, processes and users at random; after each step the guarantees hold."""

    engine: Engine
    leases: Bundle[Claimed] = Bundle("leases")
    workers: Bundle[uuid.UUID] = Bundle("workers")

    def __init__(self) -> None:
        super().__init__()
        self.connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        for model in (jobs.Run, jobs.Job, jobs.Process):
            self.connection.execute(text(f"DELETE FROM {model.__tablename__}"))
        self.ended: set[int] = set()
        self.positions: dict[int, int] = {}

    def teardown(self) -> None:
        self.connection.close()

    @rule(target=workers)
    def start_worker(self) -> uuid.UUID:
        return a_process(self.connection)

    @rule(attempts=st.integers(1, 3), priority=st.integers(-10, 10), delay=st.sampled_from([None, 0, 3600]))
    def enqueue(self, attempts: int, priority: int, delay: int | None) -> None:
        with Session(self.engine) as session:
            options = shop.mark.options(max_attempts=attempts, priority=priority, delay=delay)
            options.enqueue(session, n=1)
            session.commit()

    @rule(target=leases, worker=workers, limit=st.integers(1, 3))
    def claim(self, worker: uuid.UUID, limit: int) -> Any:
        waiting = select(jobs.Job.id).where(jobs.Job.state == "queued")
        in_order = waiting.order_by(jobs.Job.priority, jobs.Job.position).limit(limit)
        expected = list(self.connection.scalars(in_order))
        claimed = claim(self.connection, worker, limit)
        assert [job.job_id for job in claimed] == expected
        return multiple(*claimed)

    def finish(self, lease: Claimed, outcome: Outcome) -> None:
        stands = self.connection.scalar(
            select(jobs.Job.current_run_id == lease.run_id).where(jobs.Job.id == lease.job_id)
        )
        fates = QUERIES.finish(self.connection, [RunEnd(lease, outcome, 0.0, 0.001)])
        assert (fates.get(lease.run_id) in (None, "cancelled")) == bool(stands)

    @rule(lease=leases)
    def succeed(self, lease: Claimed) -> None:
        self.finish(lease, Outcome.succeeded())

    @rule(lease=leases)
    def fail(self, lease: Claimed) -> None:
        self.finish(lease, Outcome.failed(WHY))

    @rule(lease=leases, delay=st.sampled_from([0.0, 3600.0]))
    def retry_later(self, lease: Claimed, delay: float) -> None:
        self.finish(lease, Outcome.retried(delay, WHY) if lease.attempt < lease.max_attempts else Outcome.failed(WHY))

    @rule(lease=consumes(leases))
    def snooze(self, lease: Claimed) -> None:
        self.finish(lease, Outcome.snoozed(0.0))

    @rule(lease=consumes(leases))
    def release(self, lease: Claimed) -> None:
        self.finish(lease, Outcome.released())

    @rule(lease=leases)
    def cancel_from_inside(self, lease: Claimed) -> None:
        self.finish(lease, Outcome.cancelled(WHY))

    @rule(lease=leases)
    def cancel_from_outside(self, lease: Claimed) -> None:
        with Session(self.engine) as session:
            jobs.cancel(session, lease.job_id)
            session.commit()

    @rule(lease=leases)
    def retry_from_outside(self, lease: Claimed) -> None:
        with Session(self.engine) as session:
            jobs.retry(session, lease.job_id)
            session.commit()

    @rule(worker=consumes(workers))
    def lose_a_worker_and_rescue(self, worker: uuid.UUID) -> None:
        held = select(func.count()).where(jobs.Job.state == "running", jobs.Job.process_id == worker)
        count = self.connection.scalar(held)
        assert QUERIES.delete_expired(self.connection, last_heartbeat(self.connection, worker)) == [worker]
        assert len(QUERIES.rescue(self.connection)) == count

    @rule()
    def promote(self) -> None:
        QUERIES.promote(self.connection)

    @invariant()
    def a_running_job_has_a_lease_of_its_own_and_no_other_has_one(self) -> None:
        rows = self.connection.execute(
            select(jobs.Job.state, jobs.Job.current_run_id, jobs.Job.process_id, jobs.Job.finished_at)
        ).all()
        leases = [row.current_run_id for row in rows if row.current_run_id is not None]
        assert len(leases) == len(set(leases))
        for row in rows:
            assert (row.state == "running") == (row.current_run_id is not None) == (row.process_id is not None)
            assert (row.state in ("succeeded", "failed", "cancelled")) == (row.finished_at is not None)
            assert isinstance(row.state, JobState)

    @invariant()
    def every_attempt_that_ended_has_one_run(self) -> None:
        charged = func.count().filter(jobs.Run.outcome != "snoozed")
        rows = self.connection.execute(
            select(jobs.Job.id, jobs.Job.state, jobs.Job.attempt, jobs.Job.max_attempts, charged.label("runs"))
            .outerjoin(jobs.Run, jobs.Run.job_id == jobs.Job.id)
            .group_by(jobs.Job.id)
        )
        for row in rows:
            under_way = row.state == "running"
            assert row.runs == row.attempt - under_way
            assert row.attempt <= row.max_attempts

    @invariant()
    def positions_only_grow(self) -> None:
        for job_id, position in self.connection.execute(select(jobs.Job.id, jobs.Job.position)):
            assert position >= self.positions.get(job_id, -1)
            self.positions[job_id] = position


@pytest.mark.slow
def test_the_guarantees_hold_after_any_sequence_of_steps(engine: Engine) -> None:
    machine = type("Life", (JobLife,), {"engine": engine})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


def test_a_process_that_beats_again_just_before_it_is_buried_keeps_its_jobs(engine: Engine) -> None:
    with engine.begin() as connection:
        process_id = a_process(connection)
        connection.execute(insert(jobs.Job).values(task="mark", args={"n": 1}, state="queued"))
        claim(connection, process_id, 1)
        seen = last_heartbeat(connection, process_id)
    with engine.begin() as beating, engine.connect() as burying:
        assert QUERIES.beat(beating, [process_id]) == {process_id: True}
        buried: list[list[uuid.UUID]] = []
        thread = threading.Thread(target=lambda: buried.append(QUERIES.delete_expired(burying, seen)))
        thread.start()
        thread.join(0.3)
        assert not thread.is_alive(), "it does not wait for the beat under way"
        assert buried == [[]]
    with engine.connect() as burying:
        assert QUERIES.delete_expired(burying, seen) == [], "it has beaten since"
        assert QUERIES.rescue(burying) == []


def test_no_claim_gives_jobs_to_a_process_that_was_taken_for_dead(engine: Engine) -> None:
    """One that was under way at the server when its process died, say."""
    with engine.begin() as connection:
        dead = a_process(connection)
        connection.execute(insert(jobs.Job).values(task="mark", args={"n": 1}, state="queued"))
    with engine.begin() as claiming, engine.begin() as settling:
        assert len(claim(claiming, dead, 1)) == 1
        assert not QUERIES.sign_off(settling, dead), "its claim is not committed yet"
        assert QUERIES.delete_expired(settling, last_heartbeat(settling, dead)) == []
        claiming.rollback()
    with engine.begin() as settling, engine.begin() as claiming:
        assert QUERIES.sign_off(settling, dead)
        assert claim(claiming, dead, 1) == [], "whether or not that is committed"
    with engine.begin() as claiming:
        assert claim(claiming, dead, 1) == []
        assert len(claim(claiming, a_process(claiming), 1)) == 1


def test_what_a_process_holds_is_known_whatever_the_clock_says(engine: Engine) -> None:
    """The server's clock was set back after the claim."""
    with engine.begin() as connection:
        connection.execute(insert(jobs.Job).values(task="mark", args={"n": 1}, state="queued"))
        me = a_process(connection)
        (lease,) = claim(connection, me, 1)
        connection.execute(update(jobs.Job).values(started_at=func.now() + text("interval '1 hour'")))
        assert [one.run_id for one in QUERIES.leases(connection, me)] == [lease.run_id]
        assert QUERIES.leases(connection, me, [lease.run_id]) == []


def test_a_rescue_takes_no_job_from_a_process_that_it_cannot_see(engine: Engine) -> None:
    """It waits between its snapshot and its locks, while the job is rescued, and claimed by a new process."""
    wait_here = """
        CREATE FUNCTION wait_here() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
            PERFORM pg_advisory_xact_lock_shared(1); RETURN true;
        END $$"""
    with engine.begin() as connection:
        connection.execute(text(wait_here))
        connection.execute(text("CREATE ROLE slow_rescuer; GRANT ALL ON ALL TABLES IN SCHEMA public TO slow_rescuer"))
        connection.execute(text("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO slow_rescuer"))
        connection.execute(text("ALTER TABLE sqla_processes ENABLE ROW LEVEL SECURITY"))
        connection.execute(text("CREATE POLICY p ON sqla_processes TO slow_rescuer USING (wait_here())"))
        a_process(connection)
        connection.execute(insert(jobs.Job).values(task="mark", args={"n": 1}, state="queued"))
        dead = a_process(connection)
        claim(connection, dead, 1)
        QUERIES.sign_off(connection, dead)
    taken: list[list[Rescued]] = []

    def rescue_slowly() -> None:
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL ROLE slow_rescuer"))
            taken.append(QUERIES.rescue(connection))

    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        with engine.begin() as holding:
            holding.execute(text("SELECT pg_advisory_xact_lock(1)"))
            thread = threading.Thread(target=rescue_slowly)
            thread.start()
            waits = text(f"SELECT count(*) FROM {WAITING_HERE}")
            wait_until(lambda: connection.scalar(waits))
            assert [job.state for job in QUERIES.rescue(connection)] == ["queued"]
            (lease,) = claim(connection, a_process(connection), 1)
        thread.join()
        assert taken == [[]]
        assert QUERIES.finish(connection, [RunEnd(lease, Outcome.succeeded())]) == {}
        outcomes = connection.scalars(select(jobs.Run.outcome).order_by(jobs.Run.id)).all()
        assert outcomes == ["lost", "succeeded"]
        connection.execute(text("DROP OWNED BY slow_rescuer; DROP ROLE slow_rescuer"))
