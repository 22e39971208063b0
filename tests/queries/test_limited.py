"""Which jobs behind gates a claim takes: one condition at a time, each beside a job that differs in nothing else."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, func, insert, select, text, update

from sqla_jobs.database.driver import driver, execute
from sqla_jobs.database.preparing import PLANNED_ONCE
from sqla_jobs.queries import Queries
from sqla_jobs.queries.claim_limited import ClaimLimited, Look
from sqla_jobs.queries.expressions import Tables
from tests.queries.rows import limit, queued, register, running, started
from tests.shop import jobs

QUERIES = Queries(jobs._models)
LIMITED = ClaimLimited(Tables(jobs._models))
Job, Queue, PausedTask = jobs.Job, jobs.Queue, jobs._models.PausedTask
Limit, Start = jobs._models.Limit, jobs._models.Start
SECOND = timedelta(seconds=1)


def look(connection: Connection, room: int = 9, *, me: uuid.UUID | None = None, **more: Any) -> Look:
    me = me or register(connection)
    values = LIMITED.values(me, "default", room, ["mark", "wait"], **more)
    return LIMITED.look(connection, LIMITED._rows(connection, values), me)


def taken(connection: Connection, room: int = 9, **more: Any) -> list[int]:
    return [job.job_id for job in look(connection, room, **more).claimed]


@pytest.mark.parametrize(
    "other",
    [{"state": "scheduled"}, {"queue": "mail"}, {"task": "unknown"}],
    ids=str,
)
@pytest.mark.parametrize("gate", ["#a", "!a=1"])
def test_jobs_are_taken_that_are_queued_in_its_queue_of_its_tasks(
    connection: Connection, gate: str, other: dict[str, Any]
) -> None:
    queued(connection, gate, **other)
    assert taken(connection) == []
    one = queued(connection, "#b")
    assert taken(connection) == [one]


def test_a_pause_keeps_its_queue_or_task_and_no_other(connection: Connection) -> None:
    paused, one, two = queued(connection, "#a", task="wait"), queued(connection, "#a"), queued(connection, "#a")
    connection.execute(insert(PausedTask).values(name="wait", paused_at=func.now()))
    connection.execute(insert(Queue).values(name="default", paused_at=None, paused_until=func.now() + 3600 * SECOND))
    connection.execute(insert(Queue).values(name="mail", paused_at=func.now()))
    assert taken(connection, 1) == [one]
    connection.execute(update(Queue).where(Queue.name == "default").values(paused_at=func.now()))
    assert taken(connection) == []
    connection.execute(update(Queue).values(paused_until=func.now() - SECOND))
    connection.execute(update(PausedTask).values(paused_until=func.now() - SECOND))
    assert taken(connection) == [paused, two]


class TestConcurrency:
    @pytest.mark.parametrize("place", [0, 4])
    def test_what_runs_behind_the_gate_counts_at_each_place(self, connection: Connection, place: int) -> None:
        limit(connection, "#m", running=2)
        gates = ["#a", "#b", "#c", "#d"]
        running(connection, *gates[:place], "#m", *gates[place:])
        running(connection, *gates, "#e")
        queued(connection, *gates[:place], "#m", *gates[place:], state="scheduled")
        ids = [queued(connection, "#m") for _ in range(2)]
        assert taken(connection) == ids[:1]
        assert taken(connection) == []

    def test_a_row_of_each_key_and_one_of_a_single_key(self, connection: Connection) -> None:
        limit(connection, "#m=", running=1)
        limit(connection, "#m=2", running=2)
        limit(connection, "#n=", running=0)
        ids = {gate: [queued(connection, gate) for _ in range(3)] for gate in ("#m=1", "#m=2", "#m=3", "#m")}
        assert taken(connection, 20) == sorted([ids["#m=1"][0], *ids["#m=2"][:2], ids["#m=3"][0], *ids["#m"]])

    def test_groups_that_share_a_gate_share_its_room(self, connection: Connection) -> None:
        limit(connection, "#a", running=3)
        first = [queued(connection, "#a", "#x") for _ in range(3)]
        second = [queued(connection, "#a", "#y") for _ in range(3)]
        assert taken(connection) == sorted([*first[:2], second[0]])


class TestGroups:
    def test_each_gets_its_share_of_the_room(self, connection: Connection) -> None:
        first, second = ([queued(connection, gate) for _ in range(4)] for gate in ("#a", "#b"))
        assert taken(connection, 3) == sorted([*first[:2], second[0]])

    def test_within_a_group_the_most_urgent_goes_first_and_then_the_oldest(self, connection: Connection) -> None:
        last, second, first = (queued(connection, "#a", priority=priority) for priority in (1, 0, -1))
        third = queued(connection, "#a")
        assert taken(connection, 1) == [first]
        assert taken(connection, 1) == [second]
        assert taken(connection, 2) == [third, last]

    def test_one_that_is_full_is_passed_over_with_all_that_begin_as_it_does(self, connection: Connection) -> None:
        limit(connection, "#b", running=0)
        one = queued(connection, "#a", "#z")
        for other in range(3):
            queued(connection, "#b", f"#{other}")
        after = queued(connection, "#c")
        assert taken(connection) == [one, after]

    def test_one_that_is_full_at_its_second_gate_leaves_the_first_to_others(self, connection: Connection) -> None:
        limit(connection, "#b", running=0)
        queued(connection, "#a", "#b", "#c")
        queued(connection, "#a", "#b", "#d")
        one, two = queued(connection, "#a", "#c"), queued(connection, "#b2")
        assert taken(connection) == [one, two]

    def test_a_look_ends_where_the_room_is_taken_and_the_next_one_goes_on(self, connection: Connection) -> None:
        ids = [queued(connection, f"#{n}") for n in range(4)]
        first = look(connection, 2)
        assert [job.job_id for job in first.claimed] == ids[:2]
        assert first.cursor == "{#1}"
        second = look(connection, 2, cursor=first.cursor)
        assert [job.job_id for job in second.claimed] == ids[2:]
        assert look(connection, 2, cursor=second.cursor).cursor == "{}"

    def test_a_look_goes_so_many_steps(self, connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sqla_jobs.queries.claim_limited._STEPS", 3)
        limit(connection, "#m=", running=0)
        for n in range(5):
            queued(connection, f"#m={n}")
        found = look(connection)
        assert (found.claimed, found.cursor) == ([], "{#m=2}")


class TestHints:
    def test_groups_of_which_jobs_have_ended_come_first_where_they_were_full(self, connection: Connection) -> None:
        limit(connection, "#m=", running=2)
        first = queued(connection, "#m=1")
        second = queued(connection, "#m=2")
        running(connection, "#m=2")
        assert taken(connection, 1, hints={("#m=2",): 1}) == [second]
        assert taken(connection, 1) == [first]

    def test_one_that_was_not_full_takes_its_turn(self, connection: Connection) -> None:
        limit(connection, "#m=", running=3)
        first = queued(connection, "#m=1")
        second = queued(connection, "#m=2")
        running(connection, "#m=2")
        assert taken(connection, 1, hints={("#m=2",): 1}) == [first]
        assert taken(connection, 1, hints={("#m=2",): 2}) == [second]


class TestOrder:
    @pytest.mark.parametrize("elsewhere", [{"queue": "mail"}, {"task": "unknown"}, {"gates": ["!k=1", "#x"]}], ids=str)
    def test_a_head_that_waits_elsewhere_keeps_the_others(
        self, connection: Connection, elsewhere: dict[str, Any]
    ) -> None:
        head = queued(connection, "!k=1")
        connection.execute(update(Job).where(Job.id == head).values(**elsewhere))
        one = queued(connection, "!k=1")
        limit(connection, "#x", running=0)
        assert taken(connection) == []
        connection.execute(update(Job).where(Job.id == head).values(state="cancelled"))
        assert taken(connection) == [one]

    @pytest.mark.parametrize(
        ("state", "holds", "keeps"),
        [("scheduled", False, True), ("failed", True, True), ("failed", False, False), ("succeeded", True, False)],
    )
    @pytest.mark.parametrize("row", ["!k=", "!k=1"])
    def test_a_key_is_kept_by_one_that_waits_for_its_retry_or_failed(
        self, connection: Connection, state: str, holds: bool, keeps: bool, row: str
    ) -> None:
        limit(connection, row, running=1, hold=holds)
        limit(connection, "!l=", running=1, hold=True)
        queued(connection, "!k=1", state=state, started_at=func.now())
        waits, other = queued(connection, "!k=1"), queued(connection, "!k=2")
        queued(connection, "!l=1", state="scheduled")
        fresh = queued(connection, "!l=1")
        assert sorted(taken(connection)) == ([other, fresh] if keeps else [waits, other, fresh])

    def test_one_that_has_not_begun_or_was_given_back_keeps_none(self, connection: Connection) -> None:
        limit(connection, "!k=", running=1, hold=True)
        for state in ("failed", "scheduled"):
            queued(connection, "!k=1", state=state)
        one = queued(connection, "!k=1")
        given_back = queued(connection, "!k=2", started_at=func.now())
        assert sorted(taken(connection)) == [one, given_back]


class TestRates:
    def test_no_more_start_than_the_rate_and_that_is_written_down(self, connection: Connection) -> None:
        limit(connection, "%m", rate=3, per=60)
        limit(connection, "%n", rate=3, per=60)
        started(connection, "%m", 30.0)
        started(connection, "%n", 20.0, 10.0, 5.0)
        ids = [queued(connection, "%m") for _ in range(4)]
        found = look(connection)
        assert [job.job_id for job in found.claimed] == ids[:2]
        rows = connection.execute(
            select(Start.total, Start.count, Start.started_at).where(Start.gate == "%m").order_by(Start.total)
        ).all()
        assert [row[:2] for row in rows] == [(1, 1), (3, 2)]
        at = connection.scalar(select(Job.started_at).where(Job.id == ids[0]))
        assert rows[-1].started_at == at
        assert taken(connection) == []

    def test_what_was_forgotten_does_not_count(self, connection: Connection) -> None:
        limit(connection, "%m", rate=4, per=60)
        for gate, ago, total, count in (("%m", 5, 11, 1), ("%m", 10, 10, 2), ("%other", 20, 100, 1)):
            at = func.now() - timedelta(seconds=ago)
            connection.execute(insert(Start).values(gate=gate, started_at=at, total=total, count=count))
        ids = [queued(connection, "%m") for _ in range(4)]
        assert taken(connection) == ids[:1]

    def test_what_no_rate_looks_back_to_is_forgotten_but_for_the_last_one(self, connection: Connection) -> None:
        limit(connection, "%m", rate=9, per=60)
        limit(connection, "#m", running=9)
        started(connection, "%m", 100.0, 90.0, 80.0, 10.0)
        started(connection, "%other", 100.0, 70.0)
        started(connection, "#m", 100.0, 90.0)
        queued(connection, "#m", "%m")
        look(connection)
        left = connection.execute(select(Start.gate, Start.total).order_by(Start.gate, Start.total)).all()
        assert sorted(map(tuple, left)) == [
            ("#m", 1), ("#m", 2), ("%m", 3), ("%m", 4), ("%m", 5), ("%other", 1), ("%other", 2)
        ]  # fmt: skip

    def test_starts_ahead_of_a_clock_that_was_set_back_end_now_and_keep_their_distances(
        self, connection: Connection
    ) -> None:
        limit(connection, "%m", rate=3, per=60)
        limit(connection, "%n", rate=2, per=60)
        limit(connection, "%o", rate=5, per=60)
        started(connection, "%m", -3500.0, -3550.0, -3590.0)
        started(connection, "%n", -3500.0, -3570.0, -3590.0)
        started(connection, "%o", 30.0)
        one = queued(connection, "%m", "%o")
        queued(connection, "%n", "%o")
        found = look(connection)
        assert [job.job_id for job in found.claimed] == [one]
        assert found.next_in == pytest.approx(40, abs=1)
        for gate, ago in (("%m", [40, 0, 0]), ("%n", [90, 20, 0]), ("%o", [30, 0])):
            age = func.extract("epoch", func.clock_timestamp() - Start.started_at)
            found_ago = connection.scalars(select(age).where(Start.gate == gate).order_by(Start.total)).all()
            assert [*map(float, found_ago)][-len(ago) :] == pytest.approx(ago, abs=1)
        at = connection.scalar(select(Job.started_at).where(Job.id == one))
        assert connection.scalar(select(func.clock_timestamp() - at < text("interval '1 s'")))

    def test_it_says_when_a_used_up_rate_lets_one_more_start(self, connection: Connection) -> None:
        limit(connection, "%m", rate=2, per=60)
        started(connection, "%m", 70.0, 40.0, 20.0)
        started(connection, "%other", 55.0, 5.0, counts=[1, 50])
        queued(connection, "%m")
        assert look(connection).next_in == pytest.approx(20, abs=1)

    @pytest.mark.parametrize(("row", "gate"), [("%m", "%m"), ("%m=", "%m=1")])
    def test_a_burst_spreads_the_starts(self, connection: Connection, row: str, gate: str) -> None:
        limit(connection, row, rate=6, per=60, declared={"burst": 2})
        limit(connection, "%other", rate=6, per=60, declared={"burst": 3})
        started(connection, gate, 15.0)
        ids = [queued(connection, gate) for _ in range(4)]
        assert taken(connection) == ids[:1]
        found = look(connection)
        assert found.claimed == []
        assert found.next_in == pytest.approx(5, abs=1)


def test_its_moment_is_the_one_after_the_lock(connection: Connection) -> None:
    one = queued(connection, "#a")
    before = connection.execute(select(func.clock_timestamp())).scalar_one()
    look(connection)
    at = connection.execute(select(Job.started_at).where(Job.id == one)).scalar_one()
    assert at is not None
    assert at >= before


@pytest.fixture
def committed(connection: Connection, emptied: None) -> dict[str, int]:
    """Jobs that other connections see."""
    ids = {gate: queued(connection, gate) for gate in ("#a", "#b", "!c=1", "!d=1")}
    connection.commit()
    return ids


def test_what_somebody_holds_is_passed_over_and_what_is_referred_to_is_not(
    shared: Engine, connection: Connection, committed: dict[str, int]
) -> None:
    a, b, c, d = committed.values()
    with shared.connect() as other:
        other.execute(text("SELECT FROM sqla_jobs WHERE id = ANY (:ids) FOR NO KEY UPDATE"), {"ids": [a, c]})
        assert taken(connection) == [b, d]
        connection.rollback()
        other.rollback()
        other.execute(text("SELECT FROM sqla_jobs FOR KEY SHARE"))
        assert taken(connection) == [a, b, c, d]


def test_a_process_that_is_being_deleted_gets_nothing_and_one_that_beats_does(
    shared: Engine, connection: Connection, committed: dict[str, int]
) -> None:
    me = register(connection)
    connection.commit()
    with shared.connect() as other:
        other.execute(text("SELECT FROM sqla_processes WHERE id = :me FOR UPDATE"), {"me": me})
        assert taken(connection, me=me) == []
        connection.rollback()
        other.rollback()
        assert QUERIES.beat(other, [me]) == {me: True}
        assert len(taken(connection, me=me)) == 4


def test_an_ordered_key_is_not_sought_among_all_scheduled_jobs(connection: Connection) -> None:
    """A plan may be made while there are few of them, and is then kept."""
    limit(connection, "!k=", running=1, hold=True)
    queued(connection, "!k=1")
    connection.execute(text("ANALYZE sqla_jobs"))
    sql, values = LIMITED.sent(LIMITED.values(register(connection), "default", 9, ["mark"]))
    connection.execute(text(PLANNED_ONCE))
    plan = "\n".join(row[0] for row in execute(driver(connection), f"EXPLAIN {sql}", values))
    assert "sqla_jobs_order" in plan
    assert "sqla_jobs_scheduled" not in plan
