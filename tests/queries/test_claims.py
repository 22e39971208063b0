"""Which jobs a claim takes: one condition at a time, each beside a job that differs in nothing else."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, func, insert, select, text, update

from sqla_jobs.queries import Claimed, Queries
from sqla_jobs.queries.values import EVERYWHERE, PRIORITIES, Among
from tests.queries.rows import queued, register
from tests.shop import jobs

QUERIES = Queries(jobs._models)
Job, Queue, Limit, PausedTask = jobs.Job, jobs.Queue, jobs._models.Limit, jobs._models.PausedTask
HOUR = timedelta(hours=1)


LIMITING = pytest.mark.parametrize(
    ("values", "is_limited"),
    [
        ({"gate": "#wait", "tasks": ["wait"], "running": 3}, True),
        ({"gate": "%wait", "tasks": ["wait"], "rate": 3, "per": 60}, True),
        ({"gate": "#wait", "tasks": ["wait"]}, False),
        ({"gate": "@mail", "tasks": [], "running": 3}, True),
        ({"gate": "@mail", "tasks": []}, False),
        ({"gate": "!mail", "tasks": [], "running": 1}, False),
    ],
    ids=lambda given: f"{given['gate']}" if isinstance(given, dict) else "",
)
"""Rows of limits, and whether they limit the task `wait` or the queue `mail`."""


def claim(connection: Connection, slots: dict[str, int] | None = None, **more: Any) -> list[Claimed]:
    return QUERIES.claim(connection, register(connection), slots or {"default": 9}, ["mark", "wait"], **more)


def taken(connection: Connection, slots: dict[str, int] | None = None, **more: Any) -> list[int]:
    return [job.job_id for job in claim(connection, slots, **more)]


@pytest.mark.parametrize(
    "other",
    [
        {"state": "scheduled"},
        {"queue": "mail"},
        {"task": "unknown"},
        {"gates": ["#mail"]},
    ],
    ids=lambda values: next(iter(values)),
)
def test_jobs_are_taken_that_are_queued_in_its_queues_of_its_tasks_and_behind_no_gate(
    connection: Connection, other: dict[str, Any]
) -> None:
    queued(connection, **other)
    mine = queued(connection)
    assert taken(connection) == [mine]


def test_they_are_taken_in_order_and_so_many_of_each_queue(connection: Connection) -> None:
    late, first, second, third = (queued(connection, priority=priority) for priority in (10, 0, 0, -10))
    mail = [queued(connection, queue="mail") for _ in range(3)]
    assert taken(connection, {"default": 2, "mail": 2}) == [third, *sorted([first, *mail[:2]])]
    assert taken(connection) == [second, late]


def test_the_order_is_not_that_in_which_the_rows_lie(connection: Connection) -> None:
    """As it is where the planner takes the index."""
    first, second = queued(connection), queued(connection)
    connection.execute(update(Job).where(Job.id == first).values(headers={"moved": "to the end"}))
    connection.execute(text("SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off"))
    assert taken(connection, {"default": 1}) == [first]
    assert taken(connection, {"default": 1}) == [second]


def test_the_floor_of_a_priority_hides_what_lies_at_and_below_it(connection: Connection) -> None:
    below, at, above, elsewhere = (queued(connection, priority=priority) for priority in (0, 0, 0, 1))
    floors: dict[int, int] = dict(zip(PRIORITIES, EVERYWHERE, strict=True))
    floors[0] = connection.execute(select(Job.position).where(Job.id == at)).scalar_one()
    assert taken(connection, floors={"default": [*floors.values()]}) == [above, elsewhere]
    assert taken(connection) == [below, at]


PAUSES: dict[str, tuple[dict[str, Any], bool]] = {
    "for ever": ({"paused_at": func.now()}, True),
    "for an hour": ({"paused_at": func.now(), "paused_until": func.now() + HOUR}, True),
    "until an hour ago": ({"paused_at": func.now(), "paused_until": func.now() - HOUR}, False),
}
NOT_PAUSED: dict[str, Any] = {"paused_at": None, "paused_until": func.now() + HOUR}


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("what", ["queue", "task"])
def test_a_pause_keeps_its_queue_or_task_while_it_lasts(connection: Connection, what: str, pause: str) -> None:
    values, lasts = PAUSES[pause]
    paused = queued(connection, task="wait", queue="mail")
    other = queued(connection)
    if what == "queue":
        connection.execute(insert(Queue).values(name="mail", **values))
        connection.execute(insert(Queue).values(name="default", **NOT_PAUSED))
    else:
        connection.execute(insert(PausedTask).values(name="wait", **values))
    assert taken(connection, {"default": 1, "mail": 1}) == ([other] if lasts else [paused, other])


@LIMITING
def test_what_is_limited_is_left_to_those_who_count(
    connection: Connection, values: dict[str, Any], is_limited: bool
) -> None:
    connection.execute(insert(Limit).values(values))
    limited = queued(connection, task="wait", queue="mail")
    other = queued(connection)
    assert taken(connection, {"default": 1, "mail": 1}) == ([other] if is_limited else [limited, other])


def test_a_process_without_a_row_gets_nothing_and_another_row_does_not_help(connection: Connection) -> None:
    queued(connection)
    register(connection)
    assert QUERIES.claim(connection, uuid.uuid4(), {"default": 1}, ["mark"]) == []
    assert len(taken(connection)) == 1


@pytest.fixture
def committed(connection: Connection, emptied: None) -> list[int]:
    """Two jobs and a process that other connections see."""
    ids = [queued(connection) for _ in range(2)]
    connection.commit()
    return ids


def test_what_somebody_holds_is_passed_over_and_what_is_referred_to_is_not(
    shared: Engine, connection: Connection, committed: list[int]
) -> None:
    first, second = committed
    with shared.connect() as other:
        other.execute(text("SELECT FROM sqla_jobs WHERE id = :id FOR NO KEY UPDATE"), {"id": first})
        assert taken(connection, {"default": 1}) == [second], "only what may be taken counts"
        connection.rollback()
        other.rollback()
        other.execute(text("SELECT FROM sqla_jobs FOR KEY SHARE"))
        assert taken(connection) == committed


def test_two_claims_of_one_process_and_its_beat_do_not_hinder_each_other(
    shared: Engine, connection: Connection, committed: list[int]
) -> None:
    me = register(connection)
    connection.commit()
    with shared.connect() as other, shared.connect() as beating:
        assert len(QUERIES.claim(other, me, {"default": 1}, ["mark"])) == 1
        assert len(QUERIES.claim(connection, me, {"default": 1}, ["mark"])) == 1
        assert QUERIES.beat(beating, [me]) == {me: True}


@pytest.mark.parametrize("state", ["queued", "scheduled"])
class TestIsDue:
    """Whether a worker that drains would find something."""

    @staticmethod
    def is_due(connection: Connection, **more: Any) -> bool:
        return QUERIES.is_due(connection, ["default", "mail"], ["mark", "wait"], **more)

    def test_a_job_that_could_be_taken(self, connection: Connection, state: str) -> None:
        for values in ({"queue": "other"}, {"task": "unknown"}):
            queued(connection, state=state, **values)
        one = queued(connection, state=state)
        assert self.is_due(connection)
        assert not self.is_due(connection, among=Among(set_aside=[one]))
        assert not self.is_due(connection, among=Among(only=[]))
        connection.execute(update(Job).where(Job.id == one).values(state="succeeded"))
        assert not self.is_due(connection)

    def test_one_that_is_due_later_or_has_gates(self, connection: Connection, state: str) -> None:
        """Jobs with gates are promoted as others are, and left by a plain claim."""
        queued(connection, state="scheduled", run_at=func.now() + HOUR)
        assert not self.is_due(connection)
        queued(connection, state=state, gates=["#a"])
        assert self.is_due(connection) == (state == "scheduled")

    @pytest.mark.parametrize(("paused", "name"), [(Queue, "mail"), (PausedTask, "wait")])
    def test_a_pause_keeps_its_queue_or_task(self, connection: Connection, state: str, paused: Any, name: str) -> None:
        connection.execute(insert(paused).values(name=name, paused_at=func.now()))
        queued(connection, state=state, task="wait", queue="mail")
        assert not self.is_due(connection)
        queued(connection, state=state)
        assert self.is_due(connection)

    @LIMITING
    def test_what_is_limited_is_not_for_a_plain_claim_but_is_promoted(
        self, connection: Connection, state: str, values: dict[str, Any], is_limited: bool
    ) -> None:
        connection.execute(insert(Limit).values(values))
        queued(connection, task="wait", queue="mail", state=state)
        assert self.is_due(connection) == (state == "scheduled" or not is_limited)

    def test_what_somebody_holds_does_not_count_and_what_is_referred_to_does(
        self, shared: Engine, connection: Connection, committed: list[int], state: str
    ) -> None:
        connection.execute(update(Job).values(state=state))
        connection.commit()
        with shared.connect() as other:
            other.execute(text("SELECT FROM sqla_jobs FOR NO KEY UPDATE"))
            assert not self.is_due(connection)
            other.rollback()
            other.execute(text("SELECT FROM sqla_jobs FOR KEY SHARE"))
            assert self.is_due(connection), "and one of two is held while it looks"
            other.rollback()
            assert len(other.execute(text("SELECT FROM sqla_jobs FOR NO KEY UPDATE SKIP LOCKED")).all()) == 1
