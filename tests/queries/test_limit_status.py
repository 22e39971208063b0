"""What is told of limits: one condition at a time, each beside a row that differs in nothing else."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection

from sqla_jobs.queries import Queries
from sqla_jobs.queries.limit_status import GateStatus
from tests.queries.rows import limit, queued, running, started
from tests.shop import jobs

QUERIES = Queries(jobs._models)


def status(connection: Connection, gate: str, holders: int = 0) -> GateStatus | None:
    found = QUERIES.gate_statuses(connection, [gate], holders)
    assert len(found) <= 1
    return found[0] if found else None


def one(connection: Connection, gate: str, holders: int = 0) -> GateStatus:
    found = status(connection, gate, holders)
    assert found is not None
    return found


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
    def test_what_runs_counts(self, connection: Connection) -> None:
        for gate in ("#m=1", "#m=2", "#m", "#m>", "#m2=1", "#l=1", "#n=1"):
            running(connection, gate)
        queued(connection, "#m=3")
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
