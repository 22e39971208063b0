"""What each way to store an end, or progress, looks at and what it writes: one condition at a time."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, insert, select, text, update

from sqla_jobs.database.driver import driver
from sqla_jobs.errors import LeaseLost
from sqla_jobs.queries import Claimed, Queries, RunEnd, processes
from sqla_jobs.rules.outcomes import Failure, Outcome
from tests.shop import jobs

QUERIES = Queries(jobs._models)
Job, Run = jobs.Job, jobs.Run
WENT_WELL = Outcome.succeeded('{"n": 7}')


class Locked(Exception):
    """What only `finish_any` tells from a lost lease."""


def by_finish(outcome: Outcome) -> Callable[[Connection, Claimed], None]:
    def store(connection: Connection, lease: Claimed) -> None:
        told = QUERIES.finish_any(connection, [RunEnd(lease, outcome, 0.25, 0.5)])
        if told == {lease.run_id: "locked"}:
            raise Locked
        if told == {lease.run_id: "lost"}:
            raise LeaseLost
        assert told == {}

    return store


def by_succeed_many(connection: Connection, lease: Claimed) -> None:
    if QUERIES.finish._succeed_many(connection, [RunEnd(lease, WENT_WELL, 0.25, 0.5)]) != 1:
        raise LeaseLost


def by_succeed_one(connection: Connection, lease: Claimed) -> None:
    QUERIES.succeed(connection, RunEnd(lease, WENT_WELL, 0.25, 0.5))


def by_commit(connection: Connection, lease: Claimed) -> None:
    QUERIES._commit.store(driver(connection), RunEnd(lease, WENT_WELL, 0.25, 0.5))


def by_progress(connection: Connection, lease: Claimed) -> None:
    QUERIES.store_progress(connection, [(lease, 0.5, "half")])


SUCCEEDING: dict[str, Callable[[Connection, Claimed], None]] = {
    "finish_any": by_finish(WENT_WELL),
    "succeed_many": by_succeed_many,
    "succeed_one": by_succeed_one,
    "commit": by_commit,
}
FAILING = {"failed": by_finish(Outcome.failed(Failure("Error", "why")))}
WRITING = {**SUCCEEDING, **FAILING, "progress": by_progress}


def two_claimed(connection: Connection) -> list[Claimed]:
    """Two jobs, which run in two processes."""
    connection.execute(insert(Job), [{"task": "mark", "args": {"n": n}, "state": "queued"} for n in range(2)])
    return [lease for _ in range(2) for lease in claim(connection, 1)]


def claim(connection: Connection, limit: int) -> list[Claimed]:
    me = processes.register(connection, jobs._models, kind="worker", queues={}, lease=30)
    return QUERIES.claim(connection, me, {"default": limit}, list(jobs.tasks))


def rows(connection: Connection) -> list[Any]:
    found = connection.execute(select(Job.__table__).order_by(Job.id)).all()
    return [*found, *connection.execute(select(Run.__table__)).all()]


@pytest.mark.parametrize("way", SUCCEEDING)
def test_an_end_that_went_well_is_written_in_full_and_no_other_job_is_touched(connection: Connection, way: str) -> None:
    mine, _ = two_claimed(connection)
    began, other = rows(connection)
    SUCCEEDING[way](connection, mine)
    ended, same, run = rows(connection)
    assert same == other
    assert (ended.state, ended.current_run_id, ended.process_id) == ("succeeded", None, None)
    assert (run.id, run.job_id, run.attempt, run.process_id) == (mine.run_id, mine.job_id, 1, mine.process_id)
    assert (run.outcome, run.result) == ("succeeded", {"n": 7})
    assert run.started_at == began.started_at + timedelta(seconds=0.25)
    assert run.finished_at == ended.finished_at == began.started_at + timedelta(seconds=0.5)


@pytest.mark.parametrize("wrong", ["job_id", "run_id", "process_id", "state"])
@pytest.mark.parametrize("way", WRITING)
def test_nothing_is_written_under_a_lease_of_which_one_part_is_not_so(
    connection: Connection, way: str, wrong: str
) -> None:
    """The run id may be anybody's after a crash of the server, and plain SQL may end a job and leave its lease."""
    mine, other = two_claimed(connection)
    match wrong:
        case "job_id":
            mine = mine._replace(job_id=other.job_id)
        case "run_id":
            mine = mine._replace(run_id=other.run_id)
        case "process_id":
            mine = mine._replace(process_id=uuid.uuid4())
        case _:
            ended = {"state": "cancelled", "finished_at": Job.started_at}
            connection.execute(update(Job).where(Job.id == mine.job_id).values(ended))
    before = rows(connection)
    if way == "progress":
        by_progress(connection, mine)
    else:
        with pytest.raises(LeaseLost):
            WRITING[way](connection, mine)
    if way != "commit":  # after which the transaction is aborted
        assert rows(connection) == before


LOCKED = "SELECT FROM sqla_jobs FOR NO KEY UPDATE"
REFERRED_TO = "SELECT FROM sqla_jobs FOR KEY SHARE"


@pytest.fixture
def committed(connection: Connection, emptied: None) -> Claimed:
    """A running job that other connections see."""
    mine, _ = two_claimed(connection)
    connection.commit()
    return mine


@pytest.mark.parametrize("way", [way for way in WRITING if way not in ("succeed_one", "commit")])
def test_a_row_that_somebody_holds_is_passed_over_and_not_waited_for(
    shared: Engine, connection: Connection, committed: Claimed, way: str
) -> None:
    with shared.connect() as holding:
        holding.execute(text(LOCKED))
        before = rows(connection)
        if way == "progress":
            by_progress(connection, committed)
        else:
            with pytest.raises(LeaseLost if way == "succeed_many" else Locked):
                WRITING[way](connection, committed)
        assert rows(connection) == before


@pytest.mark.parametrize("way", WRITING)
def test_an_open_foreign_key_to_the_job_hinders_nobody(
    shared: Engine, connection: Connection, committed: Claimed, way: str
) -> None:
    with shared.connect() as referring:
        referring.execute(text(REFERRED_TO))
        before = rows(connection)
        WRITING[way](connection, committed)
        assert rows(connection) != before


@pytest.mark.parametrize(("of_database", "in_transaction"), [("off", "on"), ("local", "local")])
@pytest.mark.parametrize("way", [*SUCCEEDING, *FAILING, "claim"])
def test_a_commit_waits_for_the_disk_also_where_the_database_does_not(
    connection: Connection, way: str, of_database: str, in_transaction: str
) -> None:
    """A crash of the server would undo it. Where it is stricter than that, it stays so."""
    mine, _ = two_claimed(connection)
    connection.execute(text(f"SET LOCAL synchronous_commit = {of_database}"))
    if way == "claim":
        claim(connection, 1)
    else:
        WRITING[way](connection, mine)
    assert connection.scalar(text("SHOW synchronous_commit")) == in_transaction
