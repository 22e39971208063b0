"""A migration reads no rows of a large table while it has a lock that its writers wait for."""

from __future__ import annotations

from typing import Any

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Engine, create_engine, event, text

from sqla_jobs.migrations import LATEST, downgrade, upgrade

FILL = """
    INSERT INTO sqla_jobs (task, args, unique_key) SELECT 'mail', '{}', n::text FROM generate_series(1, 5000) AS n;
    INSERT INTO sqla_runs (job_id, attempt, outcome) SELECT n, 1, 'succeeded' FROM generate_series(1, 5000) AS n;
    INSERT INTO sqla_ticks (schedule_id, scheduled_for, outcome)
    SELECT 1, now(), 'skipped' FROM generate_series(1, 5000) AS n;
    INSERT INTO sqla_audit (action) SELECT 'retry' FROM generate_series(1, 5000) AS n;
    ANALYZE
"""
READ = text("SELECT coalesce(sum(seq_tup_read), 0) FROM pg_stat_user_tables WHERE relname LIKE 'sqla%'")


def readers(engine: Engine, steps: list[str]) -> list[tuple[str, int]]:
    """Each statement that takes a lock, and the rows that it reads, of those that run in `steps`."""
    found = list[tuple[str, int]]()
    beside = create_engine(engine.url, isolation_level="AUTOCOMMIT")
    before = 0

    def rows(connection: Any) -> int:
        """The rows that were read so far, once this session has told the statistics."""
        connection.connection.cursor().execute("SELECT pg_stat_force_next_flush()")
        with beside.connect() as other:
            return int(other.scalar(READ))

    def begin(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        nonlocal before
        if "lock_timeout" in statement:
            before = rows(connection)

    def end(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "lock_timeout" in statement:
            found.append((statement, rows(connection) - before))

    event.listen(engine, "before_cursor_execute", begin)
    event.listen(engine, "after_cursor_execute", end)
    for step in steps:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection)
            with context.begin_transaction():
                if step == "up":
                    upgrade(Operations(context), from_=1, to=LATEST)
                else:
                    downgrade(Operations(context), from_=LATEST, to=1)
    beside.dispose()
    return found


def test_no_rows_are_read_under_a_lock_that_writers_wait_for(engine: Engine) -> None:
    with engine.begin() as connection:
        if connection.scalar(text("SELECT to_regproc('pg_stat_force_next_flush') IS NULL")):
            pytest.skip("before PostgreSQL 15 the server tells of the rows that it reads later")
        context = MigrationContext.configure(connection)
        upgrade(Operations(context), from_=0, to=1)
        connection.execute(text(FILL))
    found = readers(engine, ["up", "down"])
    assert len(found) > 20
    assert [(statement, rows) for statement, rows in found if rows] == []
