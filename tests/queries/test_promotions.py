"""What a promotion queues, and what workers hear of jobs that were taken back."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Engine, delete, func, insert, select, text, update

from sqla_jobs.database.driver import driver
from sqla_jobs.queries import Claimed, Queries, RunEnd, processes
from sqla_jobs.queries.values import Among
from sqla_jobs.rules.outcomes import Failure, Outcome
from tests.shop import jobs

QUERIES = Queries(jobs._models)
Job, Process, Limit = jobs.Job, jobs.Process, jobs._models.Limit
WHY = Failure("Error", "why")
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)


_PAYLOADS = list[str]()


@pytest.fixture(autouse=True)
def listening(connection: Connection, emptied: None) -> Iterator[None]:
    """The connection hears what it says once it has committed."""
    raw = driver(connection)
    raw.execute(f'LISTEN "{jobs._models.channel}"'.encode())
    connection.commit()
    _PAYLOADS.clear()
    raw.add_notify_handler(_hear)  # psycopg 3.2.1 drops what comes with the answer to a statement and has no handler
    yield
    raw.remove_notify_handler(_hear)
    connection.rollback()
    connection.execute(text("UNLISTEN *"))
    connection.commit()


def _hear(message: psycopg.Notify) -> None:
    _PAYLOADS.append(message.payload)


def heard(connection: Connection) -> list[str]:
    connection.commit()
    connection.execute(text("SELECT"))  # whose answer brings what the server has sent after the commit
    connection.commit()
    payloads = sorted(_PAYLOADS)
    _PAYLOADS.clear()
    return payloads


def register(connection: Connection, kind: str = "worker", queues: tuple[str, ...] = ()) -> uuid.UUID:
    return processes.register(connection, jobs._models, kind=kind, queues=dict.fromkeys(queues, 1), lease=30)


def begun(connection: Connection, number: int, process_id: uuid.UUID) -> list[Claimed]:
    connection.execute(
        insert(Job), [{"task": "mark", "queue": f"q{n}", "args": {"n": n}, "state": "queued"} for n in range(number)]
    )
    return QUERIES.claim(connection, process_id, {f"q{n}": 1 for n in range(number)}, ["mark"])


def lose(connection: Connection, leases: list[Claimed]) -> None:
    QUERIES.finish_any(connection, [RunEnd(lease, Outcome.lost(WHY)) for lease in leases])


def release(connection: Connection, leases: list[Claimed]) -> None:
    QUERIES.finish_any(connection, [RunEnd(lease, Outcome.released()) for lease in leases])


def rescue(connection: Connection, leases: list[Claimed]) -> None:
    connection.execute(delete(Process).where(Process.id == leases[0].process_id))
    assert len(QUERIES.rescue(connection)) == len(leases)


GIVING_UP: dict[str, Callable[[Connection, list[Claimed]], None]] = {
    "lost": lose,
    "released": release,
    "rescued": rescue,
}


@pytest.mark.parametrize("way", GIVING_UP)
def test_a_job_that_was_taken_back_is_told_with_what_it_made_room_for(connection: Connection, way: str) -> None:
    """In a limited queue or behind gates its place is free, also where it does not start again itself."""
    register(connection)
    limits = {"@q2": 1, "@q3": 1, "@q0": None, "#q0": 1}
    rows: list[dict[str, Any]] = [{"gate": gate, "tasks": [], "running": running} for gate, running in limits.items()]
    connection.execute(insert(Limit), rows)
    cancelled = {"cancel_requested_at": func.now()}
    cases: list[tuple[int, dict[str, Any], list[str]]] = [
        (0, {}, ["q0"]),
        (0, cancelled, []),
        (1, {"gates": ["#m"]}, ["=limits", "q1=limits"]),
        (1, {"gates": ["#m"], **cancelled}, ["=limits"]),
    ]
    for queue, values, expected in cases:
        lease = begun(connection, 2, register(connection))[queue]
        connection.execute(delete(Job).where(Job.state == "running", Job.id != lease.job_id))
        connection.execute(update(Job).where(Job.id == lease.job_id).values({"attempt": 1, **values}))
        heard(connection)
        GIVING_UP[way](connection, [lease])
        assert heard(connection) == expected
        connection.execute(delete(Job))
    (lease,) = claim_from_limited_queue(connection)
    GIVING_UP[way](connection, [lease])
    assert heard(connection) == ["=limits", "q2"]


def claim_from_limited_queue(connection: Connection) -> list[Claimed]:
    connection.execute(insert(Job).values(task="mark", queue="q2", args={"n": 1}, state="queued"))
    claimed = QUERIES.claim_whatever_the_limits(connection, register(connection), {"q2": 1}, ["mark"])
    heard(connection)
    return claimed


def scheduled(connection: Connection, due: Any, **values: Any) -> int:
    plain = {"task": "mark", "args": {"n": 1}, "state": "scheduled", "run_at": func.now() + due}
    return connection.execute(insert(Job).values({**plain, **values}).returning(Job.id)).scalar_one()


def test_what_is_due_is_queued_in_the_order_in_which_it_was(connection: Connection) -> None:
    latest, later, sooner = (scheduled(connection, -n * SECOND) for n in (10, 20, 30))
    ahead = scheduled(connection, HOUR)
    cancelled = scheduled(connection, -HOUR, state="cancelled", finished_at=func.now())
    # by the index they would come in this order anyway
    connection.execute(text("SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off"))
    assert QUERIES.promote(connection, limit=2).promoted == 2
    assert states(connection) == dict.fromkeys((sooner, later), "queued") | {
        latest: "scheduled", ahead: "scheduled", cancelled: "cancelled",
    }  # fmt: skip
    aside = Among(set_aside=[latest])
    assert QUERIES.promote(connection, among=aside).promoted == 0
    assert QUERIES.promote(connection, ahead=7200, among=Among(only=[ahead])).promoted == 1
    found = QUERIES.promote(connection)
    assert (found.promoted, found.due_in) == (1, math.inf)
    order = select(Job.id).where(Job.state == "queued").order_by(Job.position)
    assert [*connection.scalars(order)] == [sooner, later, ahead, latest]


def states(connection: Connection) -> dict[int, str]:
    return {row.id: row.state for row in connection.execute(select(Job.id, Job.state))}


def test_it_says_when_something_is_due_next(connection: Connection) -> None:
    assert QUERIES.promote(connection).due_in == math.inf
    scheduled(connection, text("interval '1 day'"), state="queued")
    scheduled(connection, HOUR, run_at=text("'infinity'"))
    assert QUERIES.promote(connection).due_in == math.inf
    for table, name, wait in (("queues", "mail", 300.0), ("paused_tasks", "mark", 200.0)):
        rows = jobs._models.tables[table]
        until = func.now() + text(f"interval '{wait} s'")
        ended = {"name": "ended", "paused_at": func.now(), "paused_until": func.now() - HOUR}
        later = {"name": "later", "paused_at": func.now(), "paused_until": until + HOUR}
        for values in ({"name": name, "paused_at": func.now(), "paused_until": until}, ended, later):
            connection.execute(insert(rows).values(values))
        assert wait - 10 < QUERIES.promote(connection).due_in <= wait
    for wait in (100.0, 50.0):
        scheduled(connection, text(f"interval '{wait} s'"))
        assert wait - 10 < QUERIES.promote(connection).due_in <= wait
    connection.rollback()


def test_it_counts_the_workers_of_the_queues(connection: Connection) -> None:
    for kind, queues in (("worker", ("a", "b")), ("worker", ("c",)), ("clock", ("a",))):
        register(connection, kind, queues)
    assert QUERIES.promote(connection, queues=["a", "x"]).workers == 1
    assert QUERIES.promote(connection, queues=["b", "c"]).workers == 2
    assert QUERIES.promote(connection, queues=["x"]).workers == 0


@pytest.mark.parametrize(
    ("workers", "expected"), [(0, []), (1, []), (2, ["a", "a=limits", "b"])], ids=["nobody", "alone", "two"]
)
@pytest.mark.parametrize("way", ["promote", "poll"])
def test_what_was_queued_is_told_where_another_worker_lives(
    connection: Connection, workers: int, expected: list[str], way: str
) -> None:
    for _ in range(workers):
        register(connection)
    register(connection, "clock")
    for queue, gates in (("a", None), ("a", None), ("b", None), ("a", ["#m"])):
        scheduled(connection, -SECOND, queue=queue, gates=gates)
    heard(connection)
    done = QUERIES.promote(connection) if way == "promote" else QUERIES.poll(connection, ["a"], ["mark"])
    assert done.promoted == 4
    assert heard(connection) == expected


@pytest.mark.parametrize(("lock", "promoted"), [("NO KEY UPDATE", 0), ("KEY SHARE", 1)])
def test_a_due_job_that_somebody_changes_is_left_and_one_that_is_referred_to_is_not(
    shared: Engine, connection: Connection, lock: str, promoted: int
) -> None:
    scheduled(connection, -SECOND)
    connection.commit()
    with shared.connect() as other:
        other.execute(text(f"SELECT FROM sqla_jobs FOR {lock}"))
        assert QUERIES.promote(connection).promoted == promoted
        connection.rollback()
