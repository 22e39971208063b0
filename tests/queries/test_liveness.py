"""What a process asks and says about itself: one condition at a time, with another process beside it."""

from __future__ import annotations

import uuid

import pytest
from sqlalchemy import Connection, Engine, func, insert, select, text, update

from sqla_jobs.queries import Claimed, Lease, Queries, processes
from tests.shop import jobs

QUERIES = Queries(jobs._models)
Job, Process = jobs.Job, jobs.Process
CLAIMING = "SELECT FROM sqla_processes WHERE id = :id FOR KEY SHARE"
CHANGING = "SELECT FROM sqla_processes WHERE id = :id FOR NO KEY UPDATE"


def register(connection: Connection, *, beaten: str = "1 hour") -> uuid.UUID:
    """A process whose last heartbeat was so long ago."""
    process_id = processes.register(connection, jobs._models, kind="worker", queues={}, lease=30)
    ago = func.clock_timestamp() - text(f"interval '{beaten}'")
    connection.execute(update(Process).where(Process.id == process_id).values(heartbeat_at=ago))
    return process_id


def claim(connection: Connection, process_id: uuid.UUID, number: int) -> list[Claimed]:
    connection.execute(insert(Job), [{"task": "mark", "args": {"n": n}, "state": "queued"} for n in range(number)])
    return QUERIES.claim(connection, process_id, {"default": number}, list(jobs.tasks))


def test_a_process_finds_what_it_holds_and_does_not_know(connection: Connection) -> None:
    me, other = register(connection), register(connection)
    known, unknown, ended = claim(connection, me, 3)
    claim(connection, other, 1)
    without_its_lease = {"state": "cancelled", "finished_at": Job.started_at}
    connection.execute(update(Job).where(Job.id == ended.job_id).values(without_its_lease))
    expected = [Lease(unknown.job_id, unknown.run_id, me, "mark", "default", 1, unknown.max_attempts)]
    assert QUERIES.leases(connection, me, [known.run_id]) == expected
    assert QUERIES.leases(connection, me, [known.run_id]) == expected
    now = Job.started_at + text("interval '0 s'")
    a_minute_ago = func.statement_timestamp() - text("interval '1 minute'")
    assert connection.scalar(select(func.count(now)).where(Job.started_at > a_minute_ago)) == 4
    assert QUERIES.leases(connection, me, [known.run_id], age=30) == [], "an answer may be under way"
    in_a_minute = func.statement_timestamp() + text("interval '1 minute'")
    for at in (a_minute_ago, in_a_minute):  # the server's clock may have been set back since
        connection.execute(update(Job).values(started_at=at))
        assert QUERIES.leases(connection, me, [known.run_id], age=30) == expected


def test_a_process_hears_of_cancel_requests_for_the_jobs_it_names_and_holds(connection: Connection) -> None:
    me, other = register(connection), register(connection)
    asked, killed, not_asked, not_named = claim(connection, me, 4)
    (theirs,) = claim(connection, other, 1)
    wanted = [asked.job_id, killed.job_id, not_named.job_id, theirs.job_id]
    connection.execute(update(Job).where(Job.id.in_(wanted)).values(cancel_requested_at=func.now()))
    connection.execute(update(Job).where(Job.id == killed.job_id).values(kill_requested=True))
    named = [asked.job_id, killed.job_id, not_asked.job_id, theirs.job_id]
    assert QUERIES.cancel_requests(connection, me, named) == {asked.run_id: False, killed.run_id: True}


def test_a_beat_is_that_of_the_processes_it_names(connection: Connection) -> None:
    me, too, other, gone = register(connection), register(connection), register(connection), uuid.uuid4()
    assert QUERIES.beat(connection, [me, too, gone]) == {me: True, too: True}
    old = func.clock_timestamp() - text("interval '1 minute'")
    assert [*connection.scalars(select(Process.id).where(Process.heartbeat_at < old))] == [other]


@pytest.fixture
def me(connection: Connection, emptied: None) -> uuid.UUID:
    """A process that other connections see."""
    me = register(connection)
    connection.commit()
    return me


def test_a_beat_waits_for_nobody_and_is_not_hindered_by_a_claim(
    shared: Engine, connection: Connection, me: uuid.UUID
) -> None:
    with shared.connect() as other:
        other.execute(text(CHANGING), {"id": me})
        assert QUERIES.beat(connection, [me]) == {me: False}
        other.rollback()
        other.execute(text(CLAIMING), {"id": me})
        assert QUERIES.beat(connection, [me]) == {me: True}


def test_a_process_signs_off_alone_and_not_while_a_claim_of_its_own_is_under_way(
    shared: Engine, connection: Connection, me: uuid.UUID
) -> None:
    other = register(connection)
    with shared.connect() as claiming:
        claiming.execute(text(CLAIMING), {"id": me})
        assert not QUERIES.sign_off(connection, me)
        claiming.rollback()
    assert QUERIES.sign_off(connection, me)
    assert QUERIES.sign_off(connection, me), "it has no row any more"
    assert [*connection.scalars(select(Process.id))] == [other]


def test_a_silent_process_is_buried_and_one_that_has_beaten_or_claims_is_not(
    shared: Engine, connection: Connection, me: uuid.UUID
) -> None:
    beaten, not_named = register(connection), register(connection)
    of_mine = select(Process.heartbeat_at).where(Process.id == me).scalar_subquery()
    connection.execute(update(Process).where(Process.id == not_named).values(heartbeat_at=of_mine))
    seen = {one: heartbeat for one, (heartbeat, lease) in QUERIES.heartbeats(connection).items() if lease == 30}
    assert seen.keys() == {me, beaten, not_named}
    del seen[not_named]
    QUERIES.beat(connection, [beaten])
    with shared.connect() as claiming:
        claiming.execute(text(CLAIMING), {"id": me})
        assert QUERIES.delete_expired(connection, seen) == []
        claiming.rollback()
    assert QUERIES.delete_expired(connection, seen) == [me]
    assert {*connection.scalars(select(Process.id))} == {beaten, not_named}
