"""A migration holds up no writer: it reads no rows under a lock, and waits for its locks without queueing others."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import Session

from sqla_jobs.migrations import LATEST, downgrade, upgrade
from sqla_jobs.migrations.applying import migrate
from tests import shop
from tests.counting import states
from tests.helpers import wait_until

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
                    upgrade(Operations(context), from_=2, to=LATEST)
                else:
                    downgrade(Operations(context), from_=LATEST, to=2)
    beside.dispose()
    return found


def test_no_rows_are_read_under_a_lock_that_writers_wait_for(engine: Engine) -> None:
    with engine.begin() as connection:
        if connection.scalar(text("SELECT to_regproc('pg_stat_force_next_flush') IS NULL")):
            pytest.skip("before PostgreSQL 15 the server tells of the rows that it reads later")
        context = MigrationContext.configure(connection)
        upgrade(Operations(context), from_=0, to=2)
        connection.execute(text(FILL))
    found = readers(engine, ["up", "down"])
    assert len(found) == 2
    assert [(statement, rows) for statement, rows in found if rows] == []


@pytest.mark.slow
def test_writers_go_on_while_the_rules_change(database: Engine) -> None:
    """A transaction that has written a job holds up the change, and the change holds up nobody."""
    with database.connect() as connection:
        context = MigrationContext.configure(connection)
        with context.begin_transaction():
            downgrade(Operations(context), from_=LATEST, to=2)
    with Session(database) as business:
        shop.mark.enqueue(business, n=0)
        business.flush()
        changing = threading.Thread(target=migrate, args=(database, shop.jobs._models))
        changing.start()
        waits = text(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%lock_timeout%' AND pid <> pg_backend_pid()"
            " AND datname = current_database()"
        )
        with database.connect().execution_options(isolation_level="AUTOCOMMIT") as beside:
            wait_until(lambda: beside.scalar(waits), message="the change has not begun")
        with Session(database) as other:
            other.execute(text("SET lock_timeout = '2s'"))
            for n in range(1, 200):
                shop.mark.enqueue(other, n=n)
                other.commit()
        assert changing.is_alive(), "it waits for the first transaction"
        business.commit()
    changing.join(30)
    assert not changing.is_alive()
    with database.connect() as connection:
        left = "SELECT conname FROM pg_constraint WHERE NOT convalidated AND conrelid::regclass::text LIKE 'sqla%'"
        assert connection.scalars(text(left)).all() == []
    assert shop.jobs.worker().drain() == 200
    assert states(database) == {"succeeded": 200}
