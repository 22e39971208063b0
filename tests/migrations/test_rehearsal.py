"""The upgrade from the released version, rehearsed: its workers and enqueuers work on while the tables change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from sqla_jobs.models.version import LATEST
from tests.conftest import ROOT
from tests.helpers import wait_until
from tests.migrations.rehearsing import Library, both

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OLD = LATEST - 1
DOWN = """
import sys
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import create_engine
from sqla_jobs.migrations import downgrade
with create_engine(sys.argv[1]).connect() as connection:
    context = MigrationContext.configure(connection)
    with context.begin_transaction():
        downgrade(Operations(context), from_=int(sys.argv[2]), to=int(sys.argv[2]) - 1)
"""
ENDED = """
    INSERT INTO sqla_jobs (task, args, state, attempt, started_at, finished_at)
    SELECT 'plain', '{}', 'succeeded', 1, now(), now() FROM generate_series(1, 10000)
"""
UNDONE = """
    SELECT s.kind, j.id, j.state, j.queue FROM sent s LEFT JOIN sqla_jobs j ON j.id = s.job_id
    WHERE j.id IS NULL OR j.state <> 'succeeded'
"""
NOT_ONCE = """
    SELECT s.kind, j.task, s.job_id, e.effects, r.runs
    FROM sent s JOIN sqla_jobs j ON j.id = s.job_id
    LEFT JOIN LATERAL (SELECT json_agg(e) AS effects FROM effects e WHERE e.job_id = s.job_id) e ON true
    LEFT JOIN LATERAL (
      SELECT json_agg(json_build_object('run', r.id, 'attempt', r.attempt, 'outcome', r.outcome, 'error', r.error,
        'process', r.process_id, 'started', r.started_at, 'finished', r.finished_at)) AS runs
      FROM sqla_runs r WHERE r.job_id = s.job_id) r ON true
    WHERE coalesce(json_array_length(e.effects), 0) <> 1 OR coalesce(json_array_length(r.runs), 0) <> 1
      OR r.runs -> 0 ->> 'outcome' <> 'succeeded' OR r.runs -> 0 ->> 'attempt' <> '1'
"""
LATE = """
    SELECT s.kind, extract(epoch FROM max(e.at - s.due_at)), count(*)
    FROM sent s JOIN effects e ON e.job_id = s.job_id WHERE s.kind <> 'graph' GROUP BY s.kind
"""
FOUND = """
    SELECT d.job_id, extract(epoch FROM min(r.started_at) - max(p.finished_at)) AS seconds,
        (array_agg(e.version ORDER BY p.finished_at DESC))[1] AS ended_by, min(w.version) AS started_by
    FROM sqla_edges d
    JOIN sqla_jobs m ON m.id = d.needs_id OR m.batch_id = d.batch_id
    JOIN sqla_runs p ON p.job_id = m.id JOIN effects e ON e.job_id = m.id
    JOIN sqla_runs r ON r.job_id = d.job_id JOIN effects w ON w.job_id = d.job_id
    GROUP BY d.job_id
"""
"""Of each job that was blocked: the seconds since the last job before it ended, and the versions of both workers."""


@pytest.fixture
def libraries(tmp_path: Path, database_url: str, engine: Engine) -> Iterator[tuple[Library, Library]]:
    """The released library, which has created its tables, and this one."""
    if not ROOT.joinpath(".git").exists():
        pytest.skip("this is no repository, from which to take the released library")
    with both(tmp_path, database_url) as (old, new):
        old.create()
        yield old, new


class Shop:
    """What the test sees of the database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def rows(self, sql: str) -> list[Any]:
        with self._engine.connect() as connection:
            return [*connection.execute(text(sql))]

    def value(self, sql: str) -> Any:
        return self.rows(sql)[0][0]

    def wait_for_effects(self, number: int, where: str = "true") -> None:
        """Wait for so many more."""
        count = f"SELECT count(*) FROM effects WHERE {where}"
        wanted = self.value(count) + number
        wait_until(lambda: self.value(count) >= wanted, timeout=60, message=f"no {number} effects more, {where}")

    def wait_for_workers(self, number: int) -> None:
        """Wait until so many processes are at work, of any version."""
        count = "SELECT count(*) FROM sqla_processes WHERE kind = 'worker'"
        wait_until(lambda: self.value(count) >= number, timeout=60, message=f"there are no {number} workers")


def test_the_tables_change_while_workers_of_both_versions_work(
    libraries: tuple[Library, Library], engine: Engine, database_url: str
) -> None:
    old, new = libraries
    shop = Shop(engine)
    with engine.begin() as connection:
        connection.execute(text(ENDED))
    queues = "default=8,ended by the old=2"
    old_worker = old.worker("--processes", "2", "--queues", queues)
    shop.wait_for_workers(2)
    simple = old.enqueuer("simple")
    shop.wait_for_effects(60)

    new.sqla_jobs("migrate")
    shop.wait_for_effects(40)
    assert f"version {LATEST}" in new.sqla_jobs("migrate", "--check")

    new_worker = new.worker("--processes", "2", "--queues", "default=8")
    shop.wait_for_workers(4)
    graph = new.enqueuer("graph")
    shop.wait_for_effects(40, f"job_id IN (SELECT job_id FROM sqla_edges) AND version = {LATEST}")
    shop.wait_for_effects(20, f"job_id IN (SELECT job_id FROM sqla_edges) AND version = {OLD}")

    graph.use("default")
    wait_until(lambda: not shop.rows(f"{UNDONE} AND queue <> 'default'"))
    old_worker.stop()
    shop.wait_for_effects(60, f"version = {LATEST}")
    graph.stop()
    wait_until(lambda: not shop.rows(f"{UNDONE} AND s.kind = 'graph'"))
    found = shop.rows(FOUND)

    old_worker = old.worker("--processes", "2", "--queues", queues)
    shop.wait_for_effects(20, f"version = {OLD}")
    new_worker.stop()
    new.python("-c", DOWN, database_url, str(LATEST))
    old.sqla_jobs("check")
    shop.wait_for_effects(60, f"version = {OLD}")
    longest = simple.stop()
    wait_until(lambda: not shop.rows(UNDONE))
    old_worker.stop()

    assert shop.rows(NOT_ONCE) == [], "lost or doubled"
    late = {kind: round(float(seconds), 2) for kind, seconds, _ in shop.rows(LATE)}
    assert set(late) == {"plain", "transactional", "limited", "unique", "delayed"}
    assert max(late.values()) < 3.0
    waited = {
        version: [float(seconds) for _, seconds, ended_by, _ in found if ended_by == version]
        for version in (OLD, LATEST)
    }
    assert min(map(len, waited.values())) > 5
    assert min(*waited[OLD], *waited[LATEST]) > 0, "a blocked job was started"
    assert max(waited[OLD]) < 2.5
    assert longest < 2.0
