"""What is told of limits: one condition at a time, each beside a row that differs in nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, func, update

from sqla_jobs.queries import Queries
from sqla_jobs.queries.limit_status import GateStatus
from tests.queries.rows import limit, queued, running, started
from tests.shop import jobs

QUERIES = Queries(jobs._models)
Job, Start = jobs.Job, jobs._models.Start
FOUR = ["#a", "#b", "#c", "#d"]


def status(connection: Connection, gate: str, holders: int = 0) -> GateStatus | None:
    found = QUERIES.gate_statuses(connection, [gate], holders)
    assert len(found) <= 1
    return found[0] if found else None


def one(connection: Connection, gate: str, holders: int = 0) -> GateStatus:
    found = status(connection, gate, holders)
    assert found is not None
    return found


class TestGates:
    def test_they_are_told_in_the_order_in_which_they_were_asked_for(self, connection: Connection) -> None:
        for gate in ("#a", "#b", "#c"):
            limit(connection, gate, running=1)
        assert [found.gate for found in QUERIES.gate_statuses(connection, ["#b", "#none", "#c", "#a"])] == [
            "#b",
            "#c",
            "#a",
        ]

    @pytest.mark.parametrize("place", [0, 4])
    def test_what_runs_counts_at_each_place(self, connection: Connection, place: int) -> None:
        limit(connection, "#m", running=3)
        first, second = (running(connection, *FOUR[:place], "#m") for _ in range(2))
        running(connection, *FOUR, "#e")
        queued(connection, *FOUR[:place], "#m")
        found = one(connection, "#m", holders=1)
        assert (found.running, found.rate, found.per, found.used, found.holders) == (3, None, None, 2, [first])
        assert one(connection, "#m", holders=9).holders == [first, second]
        assert not found.is_full

    def test_a_row_of_each_key_and_one_of_a_single_key(self, connection: Connection) -> None:
        limit(connection, "#m=", running=1)
        limit(connection, "#m=2", running=2)
        limit(connection, "#m=3")
        assert [one(connection, f"#m={n}").running for n in (1, 2, 3)] == [1, 2, 1]
        assert status(connection, "#m") is None
        assert one(connection, "#m=").running == 1


class TestQueues:
    def test_those_that_began_first_are_named(self, connection: Connection) -> None:
        limit(connection, "@default", running=3)
        first, second = (running(connection) for _ in range(2))
        running(connection, queue="mail")
        queued(connection)
        connection.execute(update(Job).where(Job.id == first).values(current_run_id=10**9))
        assert one(connection, "@default", holders=9).holders == [second, first]


class TestRates:
    def test_what_started_in_its_time_counts(self, connection: Connection) -> None:
        limit(connection, "%m", rate=4, per=60)
        started(connection, "%other", 65.0, counts=[50])
        started(connection, "%m", 100.0, 90.0, 59.0, 10.0)
        found = one(connection, "%m")
        assert (found.running, found.rate, found.per, found.used, found.next_in) == (None, 4, 60, 2, None)
        assert found.close is None

    def test_one_that_is_used_up_says_when_the_next_may_start(self, connection: Connection) -> None:
        limit(connection, "%m", rate=2, per=60)
        started(connection, "%m", 70.0, 40.0, 20.0)
        started(connection, "%other", 50.0, 45.0, 5.0, counts=[10, 10, 10])
        found = one(connection, "%m")
        assert found.is_full
        assert found.next_in == pytest.approx(20, abs=1)

    def test_one_whose_starts_lie_ahead_of_a_clock_that_was_set_back_says_so_too(self, connection: Connection) -> None:
        limit(connection, "%m", rate=2, per=60)
        started(connection, "%m", -3530.0, -3560.0, -3580.0)
        found = one(connection, "%m")
        assert (found.used, found.is_full) == (3, True)
        assert found.next_in == pytest.approx(40, abs=1)

    def test_of_a_rate_and_its_burst_the_later_says_when_the_next_may_start(self, connection: Connection) -> None:
        limit(connection, "%m", rate=3, per=60, declared={"burst": 2})
        started(connection, "%m", 15.0, 12.0, 5.0)
        assert one(connection, "%m").next_in == pytest.approx(45, abs=1)

    @pytest.mark.parametrize(("row", "gate"), [("%m", "%m"), ("%m=", "%m=1")])
    def test_a_burst_that_is_used_up_closes_it(self, connection: Connection, row: str, gate: str) -> None:
        limit(connection, row, rate=6, per=60, declared={"burst": 2})
        limit(connection, "%other", rate=6, per=60, declared={"burst": 3})
        started(connection, gate, 15.0, 5.0)
        found = one(connection, gate)
        assert (found.used, found.close) == (2, [2, 20])
        assert found.next_in == pytest.approx(5, abs=1)


def test_starts_of_each_key_of_a_rate(connection: Connection) -> None:
    limit(connection, "%m=", rate=5, per=60)
    limit(connection, "%m=2", rate=9, per=10)
    started(connection, "%m=1", 70.0, 30.0, 20.0)
    started(connection, "%m=2", 30.0, 5.0)
    started(connection, "%n=1", 5.0)
    assert QUERIES.starts_of_keys(connection, "%m=") == {"%m=1": 2, "%m=2": 1}


class TestKeysInUse:
    @pytest.mark.parametrize("place", [0, 4])
    def test_what_runs_counts_at_each_place(self, connection: Connection, place: int) -> None:
        for gate in ("#m=1", "#m=2", "#m", "#m>", "#m2=1", "#l=1", "#n=1"):
            running(connection, *FOUR[:place], gate)
        queued(connection, *FOUR[:place], "#m=3")
        assert QUERIES.keys_in_use(connection, ["#m=", "#none="]) == {"#m=": 2, "#none=": 0}


class TestWaitingGroups:
    def test_each_group_of_each_queue_is_counted(self, connection: Connection) -> None:
        for gate, queue in (("#b", "default"), ("#a", "default"), ("#a", "default"), ("#a", "mail")):
            queued(connection, gate, queue=queue)
        queued(connection)
        queued(connection, queue="zoo")
        running(connection, "#0")
        running(connection, "#a")
        queued(connection, "#c", state="scheduled")
        found = QUERIES.waiting_groups(connection)
        assert [(one.gates, one.waiting, one.is_least) for one in found] == [
            (["#a"], 2, False),
            (["#b"], 1, False),
            (["#a"], 1, False),
        ]

    def test_so_many_are_looked_at_and_counted(self, connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sqla_jobs.queries.limit_status._GROUPS", 3)
        monkeypatch.setattr("sqla_jobs.queries.limit_status._COUNTED", 3)
        for gate, count in (("#a", 2), ("#b", 3), ("#c", 1), ("#d", 1)):
            for _ in range(count):
                queued(connection, gate)
        found = QUERIES.waiting_groups(connection)
        assert [(one.gates, one.waiting, one.is_least) for one in found] == [
            (["#a"], 2, False),
            (["#b"], 2, True),
            (["#c"], 1, True),
        ]


class TestHeldKeys:
    def test_a_failed_job_that_keeps_a_key_while_others_wait(self, connection: Connection) -> None:
        limit(connection, "!k=", running=1, hold=True)
        failed = queued(connection, "!k=1", state="failed", started_at=func.now())
        for state in ("queued", "queued", "scheduled"):
            queued(connection, "!k=1", state=state)
        queued(connection, "!k=2")
        queued(connection, "!k>", state="failed", started_at=func.now())
        queued(connection, "!k>")
        assert QUERIES.held_keys(connection, 9) == [(failed, "!k=1", 2)]

    @pytest.mark.parametrize(
        ("row", "values", "job"),
        [
            ("!k=", {"running": 1}, {}),
            ("!k=", {"hold": True}, {}),
            ("!k=1", {"running": 1, "hold": True}, {}),
            ("!j=", {"running": 1, "hold": True}, {}),
            ("!l=", {"running": 1, "hold": True}, {}),
            ("!k=", {"running": 1, "hold": True}, {"state": "scheduled"}),
            ("!k=", {"running": 1, "hold": True}, {"started_at": None}),
        ],
    )
    def test_one_that_keeps_none(
        self, connection: Connection, row: str, values: dict[str, Any], job: dict[str, Any]
    ) -> None:
        limit(connection, row, **values)
        queued(connection, "!k=2", **{"state": "failed", "started_at": func.now(), **job})
        queued(connection, "!k=2")
        assert QUERIES.held_keys(connection, 9) == []

    def test_so_many_are_told_and_counted(self, connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sqla_jobs.queries.limit_status._COUNTED", 2)
        failed: list[int] = []
        for name in "nm":
            limit(connection, f"!{name}=", running=1, hold=True)
        for name in "mn":
            for key in range(2):
                gate = f"!{name}={key}"
                failed.append(queued(connection, gate, state="failed", started_at=func.now()))
                for _ in range(3):
                    queued(connection, gate)
        found = QUERIES.held_keys(connection, 3)
        assert [(held.job_id, held.waiting) for held in found] == [(job_id, 2) for job_id in failed[:3]]


class TestHeadOfKey:
    @pytest.fixture(autouse=True)
    def limited(self, connection: Connection) -> None:
        limit(connection, "!k=", running=1, hold=True)
        for state in ("scheduled", "failed", "queued"):
            queued(connection, "!k=2", state=state, started_at=func.now(), position=1)

    def head(self, connection: Connection) -> int | None:
        return QUERIES.head_of_key(connection, "!k=1")

    def test_what_has_begun_goes_before_what_has_not(self, connection: Connection) -> None:
        assert self.head(connection) is None
        ranks = [("queued", False), ("queued", True), ("failed", True), ("scheduled", True)]
        for number, (state, begun) in enumerate(ranks, 1):
            later = {"started_at": func.now()} if begun else {}
            places = (20 * number + 1, 20 * number)
            _, first = (queued(connection, "!k=1", state=state, position=place, **later) for place in places)
            assert self.head(connection) == first, (state, begun)

    @pytest.mark.parametrize("state", ["scheduled", "failed"])
    def test_a_key_that_nothing_limits(self, connection: Connection, state: str) -> None:
        limit(connection, "!l=", hold=True)
        limit(connection, "!m", running=1, hold=True)
        for gate in ("!l=1", "!m=1"):
            queued(connection, gate, state=state, started_at=func.now())
            assert QUERIES.head_of_key(connection, gate) is None
