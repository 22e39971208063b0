"""The lock of limits with what its holder's commit waits for, and the starts that are forgotten."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, func, select, text

from sqla_jobs.queries import Queries
from sqla_jobs.queries.expressions import Tables
from sqla_jobs.queries.limit_lock import Flush, LockLimits, LockUnflushed
from tests.queries.rows import limit, started
from tests.shop import jobs

QUERIES = Queries(jobs._models)
LOCK, UNFLUSHED, FLUSH = (kind(Tables(jobs._models)) for kind in (LockLimits, LockUnflushed, Flush))
HELD = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
DAY = 86_400.0


@pytest.mark.parametrize(
    ("statement", "before", "after"),
    [
        *((statement, *change) for statement in (LOCK, FLUSH) for change in (("off", "on"), ("local", "local"))),
        (UNFLUSHED, "on", "off"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_commit_waits_for_the_disk_or_for_no_more_than_it_did(
    connection: Connection, statement: Any, before: str, after: str
) -> None:
    connection.execute(text(f"SET LOCAL synchronous_commit = '{before}'"))
    statement.run(connection)
    assert connection.scalar(text("SELECT current_setting('synchronous_commit')")) == after
    assert connection.scalar(text(HELD)) == (0 if statement is FLUSH else 1)


def test_starts_of_a_day_ago_are_forgotten_where_nothing_has_started_since(connection: Connection) -> None:
    started(connection, "%old", 2 * DAY, DAY + 60)
    started(connection, "%both", DAY + 60, DAY - 60)
    started(connection, "%new", DAY - 60)
    QUERIES.forget_starts.run(connection)
    Start = jobs._models.Start
    left = connection.execute(select(Start.gate, func.count()).group_by(Start.gate)).all()
    assert sorted(map(tuple, left)) == [("%both", 2), ("%new", 1)]


def test_a_spend_counts_starts_ahead_of_a_clock_that_was_set_back_as_if_the_last_were_now(
    connection: Connection,
) -> None:
    limit(connection, "%m", rate=3, per=60)
    started(connection, "%m", -3500.0, -3550.0, -3590.0)
    assert not QUERIES.spend(connection, "%m", 2)
    assert QUERIES.spend(connection, "%m", 1)
    Start = jobs._models.Start
    is_past = Start.started_at <= func.clock_timestamp()
    assert connection.scalars(select(is_past)).all() == [True] * 4
